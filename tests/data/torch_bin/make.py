"""Writes the torch files of this folder: python make.py (torch 2.1). The tests only read what it wrote."""

import json
from collections import OrderedDict
from pathlib import Path

import torch

FOLDER = Path(__file__).parent
FIRST, SECOND = "pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"


def ramp(*shape, dtype=torch.float32, start=0):
    count = torch.Size(shape).numel()
    return (torch.arange(count, dtype=torch.float32) * 0.25 + start).reshape(shape).to(dtype)


def main():
    torch.manual_seed(0)
    storage = ramp(4, 6, start=-3)
    first = OrderedDict(
        f32=ramp(2, 3),
        f16=ramp(3, 2, dtype=torch.float16, start=1),
        bf16=ramp(5, dtype=torch.bfloat16, start=-2),
        parameter=torch.nn.Parameter(ramp(2, 2, start=7)),
        empty=torch.zeros(0, 3),
        scalar=torch.tensor(1.5),
    )
    first._metadata = OrderedDict({"": {"version": 1}})
    second = OrderedDict(
        whole=storage,
        rows=storage[1:3],
        columns=storage[:, 2:5],
        every_second=storage[::2, 1::2],
        transposed=storage.t(),
        permuted=ramp(2, 3, 4).permute(1, 2, 0),
        expanded=ramp(3)[None].expand(2, 3),
        position_ids=torch.arange(4)[None],
    )
    second["model.mm_projector.tied"] = second["rows"]
    torch.save(first, FOLDER / FIRST)
    torch.save(second, FOLDER / SECOND)
    weight_map = {name: FIRST for name in first} | {name: SECOND for name in second}
    (FOLDER / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}) + "\n")
    torch.save({"model.mm_projector.query": ramp(2, 2)}, FOLDER / "mm_projector.bin")
    torch.save({"epoch": 3, "state_dict": {"nested": ramp(2)}}, FOLDER / "nested.bin")
    torch.save({"old": ramp(2)}, FOLDER / "legacy.bin", _use_new_zipfile_serialization=False)
    values = {
        name: {"shape": list(tensor.shape), "values": tensor.detach().float().flatten().tolist()}
        for name, tensor in (first | second).items()
        if tensor.is_floating_point()
    }
    (FOLDER / "expected.json").write_text(json.dumps(values) + "\n")


if __name__ == "__main__":
    main()
