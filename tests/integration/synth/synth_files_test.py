#!/usr/bin/env python3
"""What `banyan synth` writes, read without Banyan: synth_files_test.py BANYAN.

Headers, index and config are parsed here; every quantised matrix of the tiny geometry is dequantised by the formulas
that the formats' documentation gives and compared with the same matrix of the bf16 checkpoint, within the bound that the
format's rounding has. With the packages `safetensors`, `torch` and `bitsandbytes` (from PyPI, they run on the CPU) the
files are also read by safetensors, and bitsandbytes' own dequantisation must equal the formulas bit for bit; a line says
when they are missing.
"""

import array
import json
import math
import os
import struct
import subprocess
import sys
import tempfile

SIZES = {"F32": 4, "BF16": 2, "U8": 1, "I8": 1, "F8_E4M3": 1}
FORMATS = ("bf16", "nf4", "nf4-single", "int8", "fp8")


def check(truth, *what):
    if not truth:
        sys.exit("synth_files_test: " + " ".join(str(w) for w in what))


def f32(value):
    return struct.unpack("<f", struct.pack("<f", value))[0]


def to_bf16(value):
    """The bits of the nearest bf16, ties to even."""
    bits = struct.unpack("<I", struct.pack("<f", value))[0]
    return (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16


def from_bf16(data):
    halves = array.array("H", data)
    words = array.array("I", (h << 16 for h in halves))
    return array.array("f", words.tobytes())


def read_file(path):
    """{name: (dtype, shape, bytes)}; the header's rules are checked."""
    with open(path, "rb") as file:
        blob = file.read()
    (length,) = struct.unpack_from("<Q", blob)
    check(length % 8 == 0 and blob[8:9] == b"{", path, "header")
    header = json.loads(blob[8 : 8 + length])
    check(header.pop("__metadata__") == {"format": "pt"}, path, "__metadata__")
    out, cursor = {}, 0
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        check(begin == cursor, path, name, "leaves a hole")
        check(end - begin == math.prod(entry["shape"]) * SIZES[entry["dtype"]], path, name, "size")
        out[name] = (entry["dtype"], entry["shape"], blob[8 + length + begin : 8 + length + end])
        cursor = end
    check(8 + length + cursor == len(blob), path, "is longer than its tensors")
    return out


def read_checkpoint(directory):
    config = json.load(open(os.path.join(directory, "config.json")))
    index = json.load(open(os.path.join(directory, "model.safetensors.index.json")))
    tensors = {}
    for file in sorted(set(index["weight_map"].values())):
        for name, tensor in read_file(os.path.join(directory, file)).items():
            check(index["weight_map"][name] == file, name, "is listed elsewhere")
            check(name not in tensors, name, "twice")
            tensors[name] = tensor
    check(set(tensors) == set(index["weight_map"]), "the index lists other tensors")
    total = sum(len(t[2]) for t in tensors.values())
    check(index["metadata"]["total_size"] == total, "total_size", index["metadata"]["total_size"], total)
    return config, tensors


def nf4(tensors, name):
    """Values in f32 and the largest error that their rounding may have, one a value."""
    state = json.loads(tensors[name + ".quant_state.bitsandbytes__nf4"][2])
    check(state["quant_type"] == "nf4" and state["blocksize"] == 64 and state["dtype"] == "bfloat16", name, state)
    count = math.prod(state["shape"])
    codes = tensors[name][2]
    check(tensors[name][:2] == ("U8", [(count + 1) // 2, 1]), name, tensors[name][:2])
    table = array.array("f", tensors[name + ".quant_map"][2])
    dtype, shape, data = tensors[name + ".absmax"]
    check(shape == [(count + 63) // 64], name, shape)
    slack = [0.0] * shape[0]
    if dtype == "F32":
        absmax = array.array("f", data)
    else:
        nested_map = array.array("f", tensors[name + ".nested_quant_map"][2])
        nested = array.array("f", tensors[name + ".nested_absmax"][2])
        check(state["nested_blocksize"] == 256 and state["nested_dtype"] == "float32", name, state)
        offset = f32(state["nested_offset"])
        absmax = [f32(f32(nested_map[q] * nested[b // 256]) + offset) for b, q in enumerate(data)]
        slack = [nested[b // 256] * 0.008 for b in range(shape[0])]  # half of the map's widest gap
    gap = max(b - a for a, b in zip(table, table[1:])) / 2
    values = array.array("f", bytes(4 * count))
    bounds = array.array("f", bytes(4 * count))
    for i in range(count):
        code = codes[i // 2] >> 4 if i % 2 == 0 else codes[i // 2] & 15
        values[i] = table[code] * absmax[i // 64]
        bounds[i] = absmax[i // 64] * gap * 1.02 + slack[i // 64]
    return state["shape"], values, bounds


def int8(tensors, name):
    _, (rows, cols), data = tensors[name]
    module = name[: -len(".weight")]
    check(tensors[module + ".weight_format"] == ("U8", [], b"\0"), module, "weight_format")
    scb = array.array("f", tensors[module + ".SCB"][2])
    check(tensors[module + ".SCB"][:2] == ("F32", [rows]), module, "SCB")
    codes = array.array("b", data)
    values = array.array("f", (codes[i] * scb[i // cols] / 127 for i in range(rows * cols)))
    bounds = array.array("f", (scb[i // cols] / 127 * 0.5001 for i in range(rows * cols)))
    return [rows, cols], values, bounds


def e4m3(code):
    exponent, mantissa = code >> 3 & 15, code & 7
    value = mantissa * 2.0**-9 if exponent == 0 else (1 + mantissa / 8) * 2.0 ** (exponent - 7)
    return -value if code & 128 else value


def fp8(tensors, name):
    _, (rows, cols), codes = tensors[name]
    dtype, grid, data = tensors[name + "_scale_inv"]
    check(dtype == "BF16" and grid == [(rows + 127) // 128, (cols + 127) // 128], name, dtype, grid)
    scales = from_bf16(data)
    table = [e4m3(code) for code in range(256)]
    values = array.array("f", bytes(4 * rows * cols))
    bounds = array.array("f", bytes(4 * rows * cols))
    for i in range(rows * cols):
        check(codes[i] & 127 != 127, name, "has a NaN")
        scale = scales[(i // cols // 128) * grid[1] + i % cols // 128]
        values[i] = table[codes[i]] * scale
        # Half a step, and the scale's own rounding to bf16 at the largest value.
        bounds[i] = max(abs(values[i]) / 16 * 1.0001, scale * 2.0**-10) + (scale * 2 if abs(values[i]) >= 447 * scale else 0)
    return [rows, cols], values, bounds


DEQUANTISE = {"nf4": nf4, "nf4-single": nf4, "int8": int8, "fp8": fp8}
MARKS = {"nf4": "U8", "nf4-single": "U8", "int8": "I8", "fp8": "F8_E4M3"}


def compare(format_name, directory, plain):
    config, tensors = read_checkpoint(directory)
    matrices = [n for n, t in tensors.items() if n.endswith(".weight") and t[0] == MARKS[format_name]]
    check(len(matrices) > 200, format_name, len(matrices), "quantised matrices")
    for name in matrices:
        shape, values, bounds = DEQUANTISE[format_name](tensors, name)
        check(plain[name][1] == shape, name, shape, plain[name][1])
        for i, expected in enumerate(from_bf16(plain[name][2])):
            check(abs(values[i] - expected) <= bounds[i], format_name, name, i, values[i], expected, bounds[i])
    for name, tensor in plain.items():
        if name not in matrices:
            check(tensors[name] == tensor, format_name, name, "differs from the bf16 checkpoint")
    return config, tensors, matrices


def compare_with_libraries(directories, checked):
    """safetensors reads the same bytes; bitsandbytes dequantises to the same bf16."""
    try:
        import torch
        from safetensors import safe_open
    except ImportError as error:
        print(f"not compared with safetensors and bitsandbytes: {error}")
        return
    for format_name, directory in directories.items():
        tensors = checked[format_name][1]
        for file in sorted(f for f in os.listdir(directory) if f.endswith(".safetensors")):
            with safe_open(os.path.join(directory, file), framework="pt") as opened:
                for name in opened.keys():
                    found = opened.get_tensor(name)
                    check(list(found.shape) == tensors[name][1], name, found.shape)
                    data = found.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
                    check(data == tensors[name][2], format_name, name, "bytes")
    try:
        import bitsandbytes.functional as bnb
    except ImportError as error:
        print(f"not compared with bitsandbytes: {error}")
        return
    types = {"U8": torch.uint8, "F32": torch.float32, "I8": torch.int8}

    def tensor(entry):
        return torch.frombuffer(bytearray(entry[2]), dtype=types[entry[0]]).reshape(entry[1])

    for format_name in ("nf4", "nf4-single"):
        _, tensors, matrices = checked[format_name]
        for name in matrices:
            parts = {k[len(name) + 1 :]: tensor(t) for k, t in tensors.items() if k.startswith(name + ".")}
            state = bnb.QuantState.from_dict(parts, device=torch.device("cpu"))
            theirs = bnb.dequantize_4bit(tensor(tensors[name]), state).to(torch.bfloat16)
            shape, values, _ = nf4(tensors, name)
            check(list(theirs.shape) == shape, name, theirs.shape)
            bits = theirs.contiguous().reshape(-1).view(torch.int16).tolist()
            for i, value in enumerate(values):
                check(bits[i] & 0xFFFF == to_bf16(value), format_name, name, i, value)
    _, tensors, matrices = checked["int8"]
    for name in matrices:
        scb = tensor(tensors[name[: -len(".weight")] + ".SCB"])
        theirs = bnb.int8_vectorwise_dequant(tensor(tensors[name]), scb).reshape(-1).tolist()
        _, values, _ = int8(tensors, name)
        # The library multiplies by its f32 of 1/127: the last bit may differ.
        check(all(abs(a - b) <= abs(a) * 2**-22 for a, b in zip(theirs, values)), "int8", name)
    print("safetensors and bitsandbytes agree")


def main():
    banyan = sys.argv[1]
    with tempfile.TemporaryDirectory() as temp:
        directories, checked = {}, {}
        for format_name in FORMATS:
            out = os.path.join(temp, format_name)
            done = subprocess.run(
                [banyan, "synth", "--out", out, "--config", "tiny", "--format", format_name, "--shards", "3",
                 "--seed", "5", "--output", "json"], check=True, capture_output=True, text=True)
            told = json.loads(done.stdout)
            on_disk = sum(os.path.getsize(os.path.join(out, f)) for f in os.listdir(out))
            check(told["bytes"] == on_disk, format_name, "is said to have", told["bytes"], "has", on_disk)
            directories[format_name] = out
        config, plain = read_checkpoint(directories["bf16"])
        check("quantization_config" not in config, "bf16 with a quantization_config")
        checked["bf16"] = (config, plain, [])
        for format_name in FORMATS[1:]:
            checked[format_name] = compare(format_name, directories[format_name], plain)
            config = checked[format_name][0]["quantization_config"]
            check(config["quant_method"] == ("fp8" if format_name == "fp8" else "bitsandbytes"), format_name, config)
        compare_with_libraries(directories, checked)


main()
