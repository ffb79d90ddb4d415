"""Counts captions that equal what the scenes show: SCENES.jsonl CPU.json GPU.json. Fails when the GPU knows less."""

import json
import sys


def main() -> None:
    with open(sys.argv[1], encoding="utf-8") as lines:
        scenes = {scene["file"]: scene["caption"] for scene in map(json.loads, lines)}
    right = []
    for path in sys.argv[2:4]:
        with open(path, encoding="utf-8") as file:
            rows = {row["key"]: row["text"] for row in json.load(file)}
        right.append(sum(rows.get(file) == caption for file, caption in scenes.items()))
        print(f"{path}: {right[-1]} of {len(scenes)} captions are the scenes' own")
    # bf16 may turn a close decision, in either direction.
    if right[1] < right[0] - 2:
        sys.exit("the GPU names fewer scenes than the CPU")


if __name__ == "__main__":
    main()
