"""Small checkpoints as PyTorch saves them, and some that would run code when Python loaded them.

    python golden/pickle_files.py        (torch, numpy, safetensors)

Writes golden/pickle_files/: the same tensors in `zip.ckpt` (torch.save), `legacy.pt` (the format before PyTorch 1.6),
`packed.ckpt` (the first, with its entries compressed) and `lightning.ckpt` (under `state_dict`, beside what trainers
note); `tensors.safetensors`, their values; and `evil_*`, each of which would write a file named `owned` if it were run.
"""

import collections
import pickle
import zipfile
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

OUT = Path(__file__).with_name("pickle_files")


def tensors():
    g = torch.Generator().manual_seed(3)
    base = torch.randn(6, 8, generator=g)
    return collections.OrderedDict(
        {
            "f32": base,
            "f64": torch.randn(3, generator=g, dtype=torch.float64),
            "f16": torch.randn(2, 3, 4, generator=g).half(),
            "bf16": torch.randn(5, generator=g).bfloat16(),
            "i64": torch.arange(7) - 3,
            "i32": torch.tensor([[1], [-2]], dtype=torch.int32),
            "u8": torch.tensor([0, 255], dtype=torch.uint8),
            "bool": torch.tensor([True, False]),
            "scalar": torch.tensor(2.5),
            "empty": torch.zeros(0, 4),
            # Views of one storage.
            "part": base[2:4],
            "column": base[:, 3],
            "turned": base.T,
            "step": base[::2, 1::3],
            "channels_last": torch.randn(2, 3, 4, 5, generator=g).to(memory_format=torch.channels_last),
            "parameter": torch.nn.Parameter(torch.ones(2, 2)),
        }
    )


class Noted:
    """Pickles as a call of `function`."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def evil(path, data):
    """A checkpoint of the zip format around a pickle."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as z:
        z.writestr("archive/data.pkl", data)
        z.writestr("archive/byteorder", "little")
        z.writestr("archive/data/0", bytes(16))
        z.writestr("archive/version", "3\n")


def main():
    torch.set_num_threads(1)
    OUT.mkdir(exist_ok=True)
    t = tensors()
    torch.save(t, OUT / "zip.ckpt")
    torch.save(t, OUT / "legacy.pt", _use_new_zipfile_serialization=False)
    with zipfile.ZipFile(OUT / "zip.ckpt") as src, zipfile.ZipFile(OUT / "packed.ckpt", "w", zipfile.ZIP_DEFLATED) as dst:
        for name in src.namelist():
            dst.writestr(name, src.read(name))
    noted = {
        "epoch": 3,
        "loss": np.float64(0.5),
        "pytorch-lightning_version": "1.4.2",
        "state_dict": t,
        "callbacks": {"best": {"best_score": torch.tensor(1.0), "path": None}},
        "optimizer_states": [{"state": {0: {"step": 7, "exp_avg": torch.zeros(4)}}, "param_groups": [{"lr": 1e-4}]}],
        "seen": {1, 2},
        "big": 1 << 80,
    }
    torch.save(noted, OUT / "lightning.ckpt")
    torch.save({"w": torch.arange(16, dtype=torch.float32).to(torch.float8_e4m3fn)}, OUT / "f8.ckpt")
    save_file({k: v.detach().clone().contiguous() for k, v in t.items()}, OUT / "tensors.safetensors")

    call = "open('owned', 'w').close()"
    evil(OUT / "evil_eval.ckpt", pickle.dumps({"state_dict": Noted(eval, call)}, 2))
    evil(OUT / "evil_stack_global.ckpt", pickle.dumps({"state_dict": Noted(exec, call)}, 4))
    # INST, which calls a class without naming it first; and the same of the oldest protocol.
    evil(OUT / "evil_inst.ckpt", b"\x80\x02(S'touch owned'\nios\nsystem\n.")
    evil(OUT / "evil_inst_alone.ckpt", b"\x80\x02(ios\nsystem\n.")
    # A list of arguments for the result of a call, a class made and its state set.
    evil(OUT / "evil_build.ckpt", b"\x80\x02cbuiltins\ngetattr\ncos\n__dict__\nX\x06\x00\x00\x00system\x86R.")
    # A function that torch has and that loads pickles.
    evil(OUT / "evil_nested.ckpt", b"\x80\x02ctorch.storage\n_load_from_bytes\nC\x04abcd\x85R.")
    # An extension code, which may stand for anything.
    evil(OUT / "evil_ext.ckpt", b"\x80\x02\x82\x01)R.")
    (OUT / "evil_legacy.pt").write_bytes(pickle.dumps(Noted(eval, call), 2))
    # The magic number first, as the older format has it.
    magic = pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2) + pickle.dumps({"little_endian": True}, 2)
    (OUT / "evil_legacy_late.pt").write_bytes(magic + pickle.dumps({"a": Noted(exec, call)}, 2))


main()
