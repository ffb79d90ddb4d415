#!/usr/bin/env bash
# Makes a CUDA 13.0 toolkit root from Python wheels, for building without a system toolkit and without a GPU.
#   tests/gpu/cuda_toolkit.sh DIR      then: export CUDA_HOME=DIR/nvidia/cu13 CUDA_PATH=DIR/nvidia/cu13
set -euo pipefail
dir=${1:?usage: cuda_toolkit.sh DIR}
root=$dir/nvidia/cu13
if [ -x "$root/bin/nvcc" ] && [ -e "$root/lib/stubs/libcuda.so" ]; then
    echo "$root"
    exit 0
fi
mkdir -p "$dir/wheels"
python3 -m pip download -q --no-deps -d "$dir/wheels" \
    nvidia-cuda-nvcc==13.0.88 nvidia-cuda-crt==13.0.88 nvidia-nvvm==13.0.88 nvidia-cuda-runtime==13.0.96 \
    nvidia-cuda-cccl==13.0.85 nvidia-cuda-nvrtc==13.0.88 nvidia-curand==10.4.0.35 nvidia-cublas==13.1.0.3
for wheel in "$dir"/wheels/*.whl; do
    python3 -m zipfile -e "$wheel" "$dir"
done
chmod +x "$root"/bin/* "$root"/nvvm/bin/*
ln -sfn lib "$root/lib64"
for library in cublas cublasLt cudart curand nvrtc; do
    versioned=$(cd "$root/lib" && ls "lib$library".so.* | head -n 1)
    ln -sf "$versioned" "$root/lib/lib$library.so"
done
# The driver's library exists only where a GPU is; the linker needs its symbols. They are read from cudarc's bindings.
cargo fetch --quiet --manifest-path "$(dirname "$0")/../../Cargo.toml"
mkdir -p "$root/lib/stubs"
bindings=$(find "${CARGO_HOME:-$HOME/.cargo}/registry/src" -path '*cudarc-*/src/driver/sys*' -name '*.rs' | sort | tail -n 3)
[ -n "$bindings" ] || { echo "cuda_toolkit.sh: cudarc's sources are not where cargo fetch puts them" >&2; exit 1; }
grep -ohE '\bcu[A-Z][A-Za-z0-9_]+' $bindings | sort -u | awk '{print "int " $1 "(void) { return 999; }"}' >"$dir/stub.c"
cc -shared -fPIC -w -Wl,-soname,libcuda.so.1 -o "$root/lib/stubs/libcuda.so" "$dir/stub.c"
echo "$root"
