#!/usr/bin/env python3
"""Compares the error of q8 and q4 with that of llama.cpp's types, on random matrices.

    python3 -m venv build/llama && build/llama/bin/pip install llama-cpp-python gguf numpy
    build/llama/bin/python tools/bench/compare_quantisers.py --convert build/release/bin/gemma-convert

Puts a random matrix into an otherwise plain model file, lets gemma-convert quantise it, and prints for each type the bits
a weight and the root mean square error relative to that of the weights. llama.cpp's own code, its libggml, quantises the
same numbers. Exits with 1 if q8 is worse than Q8_0, or q4 than Q4_K.
"""

import argparse
import ctypes
import glob
import json
import os
import pathlib
import struct
import subprocess
import sys
import tempfile

import gguf
import llama_cpp
import numpy as np

ROWS, COLUMNS = 512, 2304
DEMO = pathlib.Path(__file__).resolve().parents[2] / "models" / "demo.gemma"


def random_matrices():
    random = np.random.default_rng(1)
    yield "normal", 0.02 * random.standard_normal((ROWS, COLUMNS))
    yield "Laplace", 0.02 * random.laplace(size=(ROWS, COLUMNS))
    yield "Student t, 3 degrees", 0.02 * random.standard_t(3, (ROWS, COLUMNS))
    yield "normal, columns of unlike size", 0.02 * random.standard_normal((ROWS, COLUMNS)) * random.lognormal(
        0, 1, COLUMNS)


def as_bf16(values):
    bits = values.astype(np.float32).view(np.uint32)
    return ((bits + 0x7fff + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def to_float(bf16):
    return (bf16.astype(np.uint32) << 16).view(np.float32)


# ---- llama.cpp ----


class Ggml:

    def __init__(self):
        folder = pathlib.Path(llama_cpp.__file__).parent / "lib"
        self.ggml = ctypes.CDLL(glob.glob(str(folder / "libggml-base.so*"))[0])
        self.ggml.ggml_quantize_chunk.restype = ctypes.c_size_t
        self.ggml.ggml_row_size.restype = ctypes.c_size_t

    def quantise(self, name, weights):
        """The dequantised weights and the bits of each."""
        number = gguf.GGMLQuantizationType[name]
        rows, columns = weights.shape
        row = self.ggml.ggml_row_size(ctypes.c_int(number), ctypes.c_int64(columns))
        packed = np.zeros((rows, row), dtype=np.uint8)
        size = self.ggml.ggml_quantize_chunk(ctypes.c_int(number), weights.ctypes.data_as(ctypes.c_void_p),
                                                packed.ctypes.data_as(ctypes.c_void_p), ctypes.c_int64(0),
                                                ctypes.c_int64(rows), ctypes.c_int64(columns), None)
        return gguf.dequantize(packed, number), size * 8 / weights.size


# ---- gemma-convert ----


def read_safetensors(path):
    data = path.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8:8 + length])
    types = {"U8": np.uint8, "I8": np.int8, "F16": np.float16, "BF16": np.uint16, "F32": np.float32}
    return header.pop("__metadata__"), {
        name: np.frombuffer(data[8 + length + info["data_offsets"][0]:8 + length + info["data_offsets"][1]],
                            types[info["dtype"]]).reshape(info["shape"]) for name, info in header.items()
    }


def write_directory(folder, bf16):
    """A Hugging Face directory of a tiny model with this matrix for its embedding."""
    _, demo = read_safetensors(DEMO)
    (folder / "tokenizer.model").write_bytes(demo["tokenizer"].tobytes())
    vocabulary, hidden = 4096, bf16.shape[1]
    config = {
        "model_type": "gemma2", "architectures": ["Gemma2ForCausalLM"], "hidden_activation": "gelu_pytorch_tanh",
        "hidden_size": hidden, "intermediate_size": 32, "num_attention_heads": 2, "num_key_value_heads": 1,
        "head_dim": 16, "vocab_size": vocabulary, "sliding_window": 8, "max_position_embeddings": 64,
        "rope_theta": 10000.0, "rms_norm_eps": 1e-6, "query_pre_attn_scalar": 16, "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0, "num_hidden_layers": 1, "eos_token_id": 1
    }  # yapf: disable
    (folder / "config.json").write_text(json.dumps(config))
    layer = "model.layers.0."
    shapes = {
        "model.norm.weight": (hidden,), layer + "input_layernorm.weight": (hidden,),
        layer + "post_attention_layernorm.weight": (hidden,), layer + "pre_feedforward_layernorm.weight": (hidden,),
        layer + "post_feedforward_layernorm.weight": (hidden,), layer + "self_attn.q_proj.weight": (32, hidden),
        layer + "self_attn.k_proj.weight": (16, hidden), layer + "self_attn.v_proj.weight": (16, hidden),
        layer + "self_attn.o_proj.weight": (hidden, 32), layer + "mlp.gate_proj.weight": (32, hidden),
        layer + "mlp.up_proj.weight": (32, hidden), layer + "mlp.down_proj.weight": (hidden, 32)
    }  # yapf: disable
    tensors = {name: np.zeros(shape, dtype=np.uint16) for name, shape in shapes.items()}
    tensors["model.embed_tokens.weight"] = np.resize(bf16, (vocabulary, hidden))
    header, offset = {}, 0
    for name, tensor in tensors.items():
        header[name] = {"dtype": "BF16", "shape": tensor.shape, "data_offsets": [offset, offset + tensor.nbytes]}
        offset += tensor.nbytes
    text = json.dumps(header).encode()
    with open(folder / "model.safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for tensor in tensors.values():
            file.write(tensor.tobytes())


def dequantise(tensors, name):
    """The weights of a quantised tensor, and the bits of each."""
    parts = {key[len(name) + 1:]: value for key, value in tensors.items()
             if key.startswith(name + ".") and not key.endswith(".pad")}
    if "d" not in parts:
        weights = np.repeat(parts["scales"].astype(np.float32), 32, axis=1) * parts["codes"]
    else:
        rows = parts["codes"].shape[0]
        pairs = parts["codes"].reshape(rows, -1, 16)
        codes = np.concatenate([pairs & 15, pairs >> 4], axis=2).reshape(rows, -1)
        groups = parts["scales"].shape[1]
        spread = lambda unit, multiple: np.repeat(
            np.repeat(unit.astype(np.float32), 8, axis=1)[:, :groups] * multiple, 32, axis=1)
        weights = spread(parts["d"], parts["scales"]) * codes - spread(parts["m"], parts["minimums"])
    return weights, sum(part.nbytes for part in parts.values()) * 8 / weights.size


def gemma(convert, bf16):
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        write_directory(folder, bf16)
        for kind in ("q8", "q4"):
            made = folder / f"{kind}.gemma"
            subprocess.run([convert, folder, "-o", made, "--type", kind, "--embed-type", kind, "--quiet"], check=True)
            weights, bits = dequantise(read_safetensors(made)[1], "embed")
            yield kind, weights[:len(bf16)], bits


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--convert", required=True, help="the program gemma-convert")
    convert = os.path.abspath(parser.parse_args().convert)
    ggml = Ggml()
    is_worse = False
    print(f"{'weights':32}{'type':6}{'bits':>7}{'relative RMS error':>20}")
    for name, matrix in random_matrices():
        bf16 = as_bf16(matrix)
        weights = to_float(bf16)
        results = [(kind, *ggml.quantise(kind, weights)) for kind in ("Q8_0", "Q4_0", "Q4_1", "Q4_K")]
        errors = {}
        for kind, found, bits in [*gemma(convert, bf16), *results]:
            errors[kind] = np.sqrt(np.mean((found.astype(np.float64) - weights)**2) / np.mean(weights.astype(np.float64)**2))
            print(f"{name:32}{kind:6}{bits:7.3f}{errors[kind]:20.6f}")
        is_worse |= errors["q8"] > errors["Q8_0"] or errors["q4"] > errors["Q4_K"]
    return 1 if is_worse else 0


if __name__ == "__main__":
    sys.exit(main())
