"""A small GGUF file of every storage type and kind of metadata, by the PyPI package `gguf`, and quantised numbers.

    python golden/gguf_files.py make --ggml LIB      (gguf, numpy, safetensors)
    python golden/gguf_files.py read FILE...

`make` writes golden/gguf_files/: `all.gguf`; `all.safetensors`, what the package's reader and `quants.dequantize` give for
each of its tensors, by name; and `encoded.safetensors`: `source`, and for each format `<name>.bytes`, what GGML's
`quantize_row_*_ref` makes of it. LIB is GGML's own C code as a shared library, of the sdist of the PyPI package
`ggml-python` 0.0.45:

    for s in ggml_abort ggml_row_size ggml_type_name ggml_type_size; do STUBS="$STUBS -Wl,--defsym=$s=0"; done
    gcc -O2 -shared -fPIC -Iinclude -Isrc $STUBS -o libquants.so src/ggml-quants.c -lm      (in vendor/ggml)

The script also holds that the package's own quantisers (Q4_0, Q4_1, Q5_0, Q5_1, Q8_0) give the same bytes.

`read` prints what the package reads from files as JSON: metadata, and for each tensor its type, shape and the sum of
its bytes. crates/cli/tests/convert.rs runs it over files that `aquatint convert` wrote.
"""

import argparse
import ctypes
import json
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType as T
from gguf import GGUFValueType as V
from gguf import quants

FOLDER = Path(__file__).with_name("gguf_files")
BLOCKS = [T.Q8_0, T.Q6_K, T.Q5_K, T.Q5_1, T.Q5_0, T.Q4_K, T.Q4_1, T.Q4_0, T.Q3_K, T.Q2_K]
# Where the f16 scales of a block lie.
SCALES = {T.Q6_K: [208], T.Q5_K: [0, 2], T.Q4_K: [0, 2], T.Q3_K: [108], T.Q2_K: [80, 82], T.Q4_1: [0, 2], T.Q5_1: [0, 2]}


def blocks(rng, kind, shape):
    """Random blocks as bytes: rows of `shape`, with sane scales."""
    block, size = gguf.GGML_QUANT_SIZES[kind]
    out = rng.integers(0, 256, (*shape[:-1], shape[-1] // block, size), dtype=np.uint8)
    for place in SCALES.get(kind, [0]):
        scale = rng.normal(0, 0.05, out.shape[:-1]).astype(np.float16)
        out[..., place : place + 2] = scale[..., None].view(np.uint8)
    return out.reshape(*shape[:-1], -1)


def make_file():
    rng = np.random.default_rng(7)
    writer = gguf.GGUFWriter(FOLDER / "all.gguf", "t5encoder")
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    for i, kind in enumerate(["UINT8", "INT8", "UINT16", "INT16", "UINT32", "INT32", "UINT64", "INT64"]):
        writer.add_key_value(f"test.{kind.lower()}", 100 + i if kind[0] == "U" else -100 - i, V[kind])
    writer.add_key_value("test.float32", -0.1, V.FLOAT32)
    writer.add_key_value("test.float64", 1e300, V.FLOAT64)
    writer.add_key_value("test.bool", True, V.BOOL)
    writer.add_key_value("test.string", "grün \U0001f3a8", V.STRING)
    writer.add_key_value("test.numbers", [1, -2, 3], V.ARRAY, V.INT32)
    writer.add_key_value("test.bools", [True, False], V.ARRAY, V.BOOL)
    writer.add_key_value("test.doubles", [0.5, -1e-300], V.ARRAY, V.FLOAT64)
    writer.add_key_value("tokenizer.ggml.model", "t5", V.STRING)
    writer.add_token_list(["<pad>", "</s>", "▁a", "ä", "\n"])
    writer.add_token_scores([0.0, 0.0, -2.5, -3.25, -4.125])
    writer.add_token_types([3, 3, 1, 1, 1])
    values = {}

    def add(name, data, kind, shape):
        writer.add_tensor(name, data, raw_dtype=kind)
        values[name] = quants.dequantize(data, kind).astype(np.float32).reshape(shape)

    for kind in BLOCKS:
        add(f"{kind.name.lower()}.weight", blocks(rng, kind, (3, 256)), kind, (3, 256))
    plain = rng.normal(0, 1, (2, 3, 5)).astype(np.float32)
    add("f32", plain, T.F32, plain.shape)
    add("f16", plain.astype(np.float16), T.F16, plain.shape)
    add("bf16", quants.quantize(plain, T.BF16), T.BF16, plain.shape)
    # A convolution as one long row, as ComfyUI-GGUF stores it.
    writer.add_array("comfy.gguf.orig_shape.conv.weight", [8, 32, 3, 3])
    add("conv.weight", blocks(rng, T.Q4_K, (9, 256)), T.Q4_K, (8, 32, 3, 3))
    for name, data in [("i8", np.int8([-3, 4])), ("i32", np.int32([[7], [-8]])), ("f64", np.float64([1 / 3]))]:
        writer.add_tensor(name, data)
        values[name] = data.astype(np.float32)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    from safetensors.numpy import save_file

    save_file({n: np.ascontiguousarray(v) for n, v in values.items()}, FOLDER / "all.safetensors")


def sources(rng):
    """Blocks of 256 numbers: normal ones of many sizes, and what is special."""
    x = (rng.normal(0, 1, (24, 256)) * 10.0 ** rng.uniform(-5, 2, (24, 1))).astype(np.float32)
    x[0] = 0
    x[1, :32] = 0
    x[2] = 0.75
    x[3] = np.abs(x[3])
    x[4] = -np.abs(x[4])
    x[5] = 0
    x[5, 77] = -2.5
    x[6] = np.linspace(-1, 1, 256)
    x[7] = rng.integers(-8, 8, 256) / 8
    x[8, ::16] *= 50
    x[9] = 1e-20
    x[10, 128:] *= 1e-6
    return x


def make_encoded(library):
    lib = ctypes.CDLL(library, mode=ctypes.RTLD_LOCAL)
    x = sources(np.random.default_rng(11))
    out = {"source": x}
    for kind in BLOCKS:
        block, size = gguf.GGML_QUANT_SIZES[kind]
        function = getattr(lib, f"quantize_row_{kind.name.replace('Q', 'q', 1)}_ref")
        data = np.zeros(x.size // block * size, dtype=np.uint8)
        pointers = [ctypes.c_void_p(a.ctypes.data) for a in (x, data)]
        function.restype = None
        function(*pointers, ctypes.c_int64(x.size))
        out[f"{kind.name.lower()}.bytes"] = data
        if "K" not in kind.name:
            same = np.array_equal(quants.quantize(x, kind).ravel(), data)
            print(kind.name, "the package's bytes are", "the same" if same else "OTHERS")

    from safetensors.numpy import save_file

    save_file(out, FOLDER / "encoded.safetensors")


def read(path):
    reader = gguf.GGUFReader(path)
    fields = {k: f.contents() for k, f in reader.fields.items() if not k.startswith("GGUF.")}
    tensors = {}
    for t in reader.tensors:
        raw = np.ascontiguousarray(t.data).view(np.uint8)
        # The values, as f32, in PyTorch's order of axes.
        values = quants.dequantize(t.data, t.tensor_type).astype(np.float32) if t.tensor_type.name not in ("I8", "I16", "I32", "I64", "F64") else t.data
        tensors[t.name] = {
            "type": t.tensor_type.name,
            "shape": [int(n) for n in reversed(t.shape)],
            "sum": int(raw.sum(dtype=np.uint64)),
            "mean_square": float(np.mean(np.float64(values) ** 2)),
        }
    return {"metadata": fields, "tensors": tensors}


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    sub = parser.add_subparsers(dest="what", required=True)
    make = sub.add_parser("make")
    make.add_argument("--ggml", required=True)
    sub.add_parser("read").add_argument("files", nargs="+")
    args = parser.parse_args()
    if args.what == "make":
        FOLDER.mkdir(exist_ok=True)
        make_file()
        make_encoded(args.ggml)
    else:
        print(json.dumps([read(f) for f in args.files], ensure_ascii=False))
