#!/usr/bin/env bash
# Fills fuzz/corpus/<target> with the small files of the test data. Run it from anywhere; it adds, it removes nothing.
set -euo pipefail
cd "$(dirname "$0")/.."
seed() { # TARGET FILE...
    local target=$1
    mkdir -p "fuzz/corpus/$target"
    shift
    for file; do
        [ "$(stat -c %s "$file")" -le 65536 ] && cp "$file" "fuzz/corpus/$target/$(echo "$file" | tr / _)"
    done
    return 0
}
mapfile -t images < <(find tests/data/images tests/data/rare -type f ! -name '*.csv' ! -name '*.json')
seed header "${images[@]}"
seed decode "${images[@]}"
mapfile -t exif < <(find tests/data/images -name 'exif*' -o -name 'orientation*')
seed exif tests/data/images/*.tif
# What stands behind the marker in a JPEG is a block without its carrier.
for file in "${exif[@]}"; do
    case $file in *.jpg) tail -c +13 "$file" | head -c 512 >"fuzz/corpus/exif/$(basename "$file").block" ;; esac
done
mapfile -t models < <(find tests/data -name tokenizer.model)
seed tokenizer_model "${models[@]}"
mapfile -t jobs < <(find examples pipelines -name '*.toml')
seed job_file "${jobs[@]}"
mkdir -p fuzz/corpus/tar fuzz/corpus/lists
tar --format=ustar -cf fuzz/corpus/tar/ustar.tar README.md pipelines
tar --format=gnu -cf fuzz/corpus/tar/gnu.tar --transform "s,^,$(printf 'long/%.0s' {1..30})," pipelines
tar --format=pax -cf fuzz/corpus/tar/pax.tar pipelines
printf '{"path": "a.jpg", "license": "cc0", "n": 1}\n{"path": "b.jpg", "n": 2.5}\n' >fuzz/corpus/lists/a.jsonl
printf 'path,license,n\na.jpg,"c\nc0",1\n"b ""c"".jpg",,x\n' >fuzz/corpus/lists/a.csv
printf 's3://bucket/a%%20b.jpg\n/photos/c d.jpg\nhttps://example.org/e?f=g#h\n' >fuzz/corpus/lists/a.txt
