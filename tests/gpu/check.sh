#!/usr/bin/env bash
# Builds slicemill with the cuda feature and, where a GPU is at hand, runs the example scenes on it and on the CPU and
# compares visual tokens (cosine > 0.999) and captions, with each other and with what the scenes show. Two steps, because
# they may run on two machines:
#   tests/gpu/check.sh build TOOLKIT_DIR BINARY    builds and strips the program to BINARY, and packs it to BINARY.gz
#   tests/gpu/check.sh run BINARY [OUT]            compares; says so and exits 0 when there is no GPU. BINARY may be packed
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
repo=$(cd "$here/../.." && pwd)

build() {
    local root
    root=$("$here/cuda_toolkit.sh" "$1")
    cd "$repo"
    PATH=$root/bin:$PATH CUDA_HOME=$root CUDA_PATH=$root CUDA_COMPUTE_CAP=${CUDA_COMPUTE_CAP:-90} \
        LIBRARY_PATH=$root/lib:$root/lib/stubs LD_LIBRARY_PATH=$root/lib:$root/lib/stubs \
        cargo build --release --package slicemill-cli --features cuda
    cp "${CARGO_TARGET_DIR:-$repo/target}/release/slicemill" "$2"
    strip "$2"
    gzip -1 -k -f "$2"
    ls -l "$2" "$2.gz"
}

run() {
    local program=$1 out=${2:-$(mktemp -d)}
    if ! nvidia-smi -L >/dev/null 2>&1; then
        echo "no GPU here: nothing was compared"
        return 0
    fi
    # The CUDA libraries of an installed torch will do.
    local site
    site=$(python3 -c 'import site; print(":".join(site.getsitepackages()))')
    for folder in ${site//:/ }; do
        for lib in "$folder"/nvidia/*/lib; do
            [ -d "$lib" ] && export LD_LIBRARY_PATH="$lib:${LD_LIBRARY_PATH:-}"
        done
    done
    if [ "${program%.gz}" != "$program" ]; then
        gunzip -c "$program" >"$out/slicemill"
        chmod +x "$out/slicemill"
        program=$out/slicemill
    fi
    nvidia-smi --query-gpu=name,memory.total --format=csv,noheader
    "$program" doctor --devices cuda:0
    for device in cpu cuda:0; do
        local name=${device%%:*}
        "$program" encode "$repo/examples/images" -o "$out/tokens-$name" --devices "$device" --progress off
        echo "caption on $device:"
        time "$program" caption "$repo/examples/images" -o "$out/captions-$name" \
            --devices "$device" --progress off
    done
    "$program" compare "$out/tokens-cpu" "$out/tokens-cuda" --cosine-min 0.999
    "$program" compare "$out/captions-cpu" "$out/captions-cuda" || echo "captions differ where bf16 decides otherwise"
    for name in cpu cuda; do
        "$program" sql "$out/captions-$name" "SELECT key, text FROM captions" --format json >"$out/captions-$name.json"
    done
    python3 "$here/expected_captions.py" "$repo/examples/scenes.jsonl" "$out/captions-cpu.json" "$out/captions-cuda.json"
}

case ${1:-} in
build) build "${2:?toolkit folder}" "${3:?binary}" ;;
run) run "${2:?binary}" "${3:-}" ;;
*)
    sed -n '2,7p' "$0"
    exit 2
    ;;
esac
