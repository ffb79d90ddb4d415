"""python -m oracle: see README.md beside this file."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import torch
import transformers

DATA = Path(__file__).resolve().parents[2] / "data/checkpoints"


def main() -> int:
    parser = argparse.ArgumentParser(prog="oracle", description="Tiny checkpoints and their reference outputs.")
    parser.add_argument("--data", type=Path, default=DATA, help="where the built layouts and images are")
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("check", help="compare with checkpoint/ and expected/, or recipe.json and expected/")
    command.add_argument("folder", type=Path, nargs="+")
    commands.add_parser("images", help="draw the images")
    command = commands.add_parser("build", help="write layouts and their expected outputs")
    command.add_argument("layout", nargs="+")
    commands.add_parser("cases", help="write the tokenizer and beam search cases of the built layouts")
    command = commands.add_parser("seeds", help="what seeds give, to choose one")
    command.add_argument("layout")
    command.add_argument("--first", type=int, default=1)
    command.add_argument("--count", type=int, default=8)
    command = commands.add_parser("rebuild", help="make a loadable checkpoint of a committed layout")
    command.add_argument("layout")
    command.add_argument("out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()

    from . import build, check, expected, pictures, recipe
    images, good = arguments.data / "images", True
    if arguments.command == "check":
        for folder in arguments.folder:
            print(folder)
            if (folder / "recipe.json").exists():
                with tempfile.TemporaryDirectory() as scratch:
                    recipe.rebuild(folder, Path(scratch))
                    good &= check.check(folder, Path(scratch), images)
            else:
                good &= check.check(folder)
    elif arguments.command == "images":
        pictures.draw(images)
        expected.describe_images(images)
    elif arguments.command == "build":
        for name in arguments.layout:
            index = build.build(name, arguments.data, images)
            print(f"{name}: {index['runs']} runs, least gap {index['min_gap_over_all']}, "
                  f"{index['distinct_outputs']} distinct outputs, {index['differing_in_f64']} differ in f64")
    elif arguments.command == "cases":
        build.write_cases(arguments.data)
    elif arguments.command == "seeds":
        build.try_seeds(arguments.layout, images, range(arguments.first, arguments.first + arguments.count))
    else:
        recipe.rebuild(arguments.data / arguments.layout, arguments.out)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
