#!/usr/bin/env bash
# Host stage of slicemill against Pillow and numpy: the same files, the same core, in turns.
#
#   tests/reference/bench_host.sh [PYTHON]     (a Python with pillow and numpy; default python3)
#
# Prints both rates for every turn and the ratio of the best. The digests show that both made the same patches.
set -euo pipefail
cd "$(dirname "$0")/../.."
python=${1:-python3}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
core=()
if command -v taskset > /dev/null; then core=(taskset -c 0); fi
"$python" tests/reference/host_stage.py generate "$work/images"
if [ -z "${HOST_STAGE:-}" ]; then
    HOST_STAGE=$(cargo bench -q -p slicemill-image --bench host_stage --no-run --message-format=json |
        "$python" -c 'import json,sys; print([r["executable"] for r in map(json.loads, sys.stdin) if r.get("executable")][-1])')
fi
for _ in 1 2 3; do
    "${core[@]}" "$python" tests/reference/host_stage.py run "$work/images" 2 | tee -a "$work/log"
    "${core[@]}" "$HOST_STAGE" "$work/images" 2 | tee -a "$work/log"
done
"$python" - "$work/log" << 'END'
import re, sys
best, digests = {}, set()
for line in open(sys.argv[1]):
    name, rate = line.split()[0], float(re.search(r"images_per_s=([\d.]+)", line)[1])
    best[name] = max(best.get(name, 0.0), rate)
    digests.add(re.search(r"digest=(\d+)", line)[1])
print(f"ratio={best['slicemill'] / best['pillow']:.2f} same_patches={'yes' if len(digests) == 1 else 'no'}")
END
