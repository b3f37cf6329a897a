#!/usr/bin/env python3
"""Measures llama.cpp on random weights of a Gemma 2 shape, to set beside `gemma-bench --shape`.

    python3 -m venv build/llama && build/llama/bin/pip install llama-cpp-python gguf numpy
    build/llama/bin/python tools/bench/compare_llama_cpp.py --shape 2b --type q4 --bench build/release/bin/gemma-bench

Runs both, one after the other and with the same number of threads, and prints one line each and the ratio. A type of
ours is set beside those of llama.cpp that have about as many bits: q8 beside Q8_0, q4 beside Q4_0 and Q4_K_M.
"""

import argparse
import ctypes
import json
import os
import statistics
import subprocess
import sys
import time

import numpy as np

# hidden, feed-forward, layers, heads, KV heads, head size
SHAPES = {
    "2b": (2304, 9216, 26, 8, 4, 256),
    "9b": (3584, 14336, 42, 16, 8, 256),
    "27b": (4608, 36864, 46, 32, 16, 128),
}
VOCABULARY = 256000

# llama.cpp's types beside ours.
TYPES = {"bf16": ["BF16"], "q8": ["Q8_0"], "q4": ["Q4_0", "Q4_K_M"]}

# Layouts of the blocks that GGUF's types are made of.
BLOCKS = {
    "BF16": np.dtype([("weight", "<u2")]),
    "Q8_0": np.dtype([("d", "<f2"), ("qs", "i1", 32)]),
    "Q4_0": np.dtype([("d", "<f2"), ("qs", "u1", 16)]),
    "Q4_K": np.dtype([("d", "<f2"), ("dmin", "<f2"), ("scales", "u1", 12), ("qs", "u1", 128)]),
    "Q6_K": np.dtype([("ql", "u1", 128), ("qh", "u1", 64), ("scales", "i1", 16), ("d", "<f2")]),
}
BLOCK_WEIGHTS = {"BF16": 1, "Q8_0": 32, "Q4_0": 32, "Q4_K": 256, "Q6_K": 256}


def noise(kind, random):
    """Blocks of noise that are repeated to fill a matrix: random enough for timing, and made in seconds."""
    count = (1 << 22) // BLOCK_WEIGHTS[kind]
    if kind == "BF16":
        weights = (random.standard_normal(count).astype(np.float32) * 0.02).view(np.uint32)
        return (weights >> 16).astype("<u2").view(BLOCKS[kind])
    blocks = np.frombuffer(random.bytes(count * BLOCKS[kind].itemsize), dtype=BLOCKS[kind]).copy()
    blocks["d"] = {"Q8_0": 3e-4, "Q4_0": 4e-3, "Q4_K": 1e-4, "Q6_K": 1e-5}[kind]
    if kind == "Q4_K":
        blocks["dmin"] = 8e-4
    return blocks


def stored_type(mixture, name, layer, layers):
    """The type of one matrix in a file of a mixture, as llama-quantize chooses it."""
    if mixture in ("BF16", "Q8_0"):
        return mixture
    if name == "token_embd":  # also the head
        return "Q6_K"
    if mixture == "Q4_0":
        return mixture
    has_more_bits = layer < layers // 8 or layer >= 7 * layers // 8 or (layer - layers // 8) % 3 == 2
    return "Q6_K" if has_more_bits and name in ("attn_v", "ffn_down") else "Q4_K"


def write_gguf(path, shape, mixture):
    """A GGUF file of noise; llama.cpp's speed does not depend on what the weights say."""
    import gguf

    hidden, feed_forward, layers, heads, kv_heads, head_dim = SHAPES[shape]
    writer = gguf.GGUFWriter(path, "gemma2", use_temp_file=True)
    writer.add_context_length(8192)
    writer.add_embedding_length(hidden)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(feed_forward)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_attn_logit_softcapping(50.0)
    writer.add_final_logit_softcapping(30.0)
    writer.add_sliding_window(4096)
    writer.add_vocab_size(VOCABULARY)
    writer.add_string("tokenizer.ggml.model", "no_vocab")
    random = np.random.default_rng(1)
    noises = {kind: noise(kind, random) for kind in BLOCKS}

    def matrix(name, rows, columns, layer=None):
        kind = stored_type(mixture, name, layer, layers)
        data = np.resize(noises[kind], rows * columns // BLOCK_WEIGHTS[kind]).view(np.uint8).reshape(rows, -1)
        prefix = "" if layer is None else f"blk.{layer}."
        writer.add_tensor(f"{prefix}{name}.weight", data, raw_dtype=gguf.GGMLQuantizationType[kind])

    def norm(name):
        writer.add_tensor(name, np.ones(hidden, dtype=np.float32))

    matrix("token_embd", VOCABULARY, hidden)
    norm("output_norm.weight")
    for i in range(layers):
        norm(f"blk.{i}.attn_norm.weight")
        matrix("attn_q", heads * head_dim, hidden, i)
        matrix("attn_k", kv_heads * head_dim, hidden, i)
        matrix("attn_v", kv_heads * head_dim, hidden, i)
        matrix("attn_output", hidden, heads * head_dim, i)
        norm(f"blk.{i}.post_attention_norm.weight")
        norm(f"blk.{i}.ffn_norm.weight")
        matrix("ffn_gate", feed_forward, hidden, i)
        matrix("ffn_up", feed_forward, hidden, i)
        matrix("ffn_down", hidden, feed_forward, i)
        norm(f"blk.{i}.post_ffw_norm.weight")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file(progress=False)
    writer.close()


def measure_llama(path, threads, context, prompt, tokens, repeats):
    import llama_cpp

    llama_cpp.llama_backend_init()
    model_params = llama_cpp.llama_model_default_params()
    model_params.n_gpu_layers = 0
    model = llama_cpp.llama_model_load_from_file(path.encode(), model_params)
    params = llama_cpp.llama_context_default_params()
    params.n_ctx = max(context, prompt) + tokens + 64
    params.n_batch = 512
    params.n_ubatch = 512
    params.n_threads = threads
    params.n_threads_batch = threads
    session = llama_cpp.llama_init_from_model(model, params)

    def decode(count, first):
        ids = [(position * 7919 + 2) % VOCABULARY for position in range(first, first + count)]
        array = (llama_cpp.llama_token * count)(*ids)
        batch = llama_cpp.llama_batch_get_one(array, count)
        if llama_cpp.llama_decode(session, batch) != 0:
            sys.exit("llama_decode failed")
        # Wait for the answer, as a sampler would.
        ctypes.cast(llama_cpp.llama_get_logits_ith(session, -1), ctypes.c_void_p)

    def read(count):
        for first in range(0, count, 512):
            decode(min(512, count - first), first)

    def clear():
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(session), True)

    prompt_seconds = []
    for repeat in range(repeats + 1):
        clear()
        start = time.perf_counter()
        read(prompt)
        if repeat > 0:
            prompt_seconds.append(time.perf_counter() - start)
    clear()
    read(context)
    step_seconds = []
    for i in range(tokens):
        start = time.perf_counter()
        decode(1, context + i)
        step_seconds.append(time.perf_counter() - start)
    llama_cpp.llama_free(session)
    llama_cpp.llama_model_free(model)
    return prompt / statistics.median(prompt_seconds), 1 / statistics.median(step_seconds)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="2b")
    parser.add_argument("--type", choices=TYPES, default="bf16", help="of our weights")
    parser.add_argument("--bench", default="build/release/bin/gemma-bench", help="the gemma-bench to compare with")
    parser.add_argument("--folder", default="build", help="where random GGUF files of some gigabytes are kept")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()

    theirs = {}
    for mixture in TYPES[args.type]:
        path = os.path.join(args.folder, f"random-{args.shape}-{mixture.lower()}.gguf")
        if not os.path.exists(path):
            write_gguf(path, args.shape, mixture)
        theirs[mixture] = measure_llama(path, args.threads, args.context, args.prompt, args.tokens, args.repeats)
    command = [args.bench, "--shape", args.shape, "--type", args.type, "--device", "cpu", "--json"]
    for name in ("threads", "context", "prompt", "tokens", "repeats"):
        command += [f"--{name}", str(getattr(args, name))]
    ours = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    model = ours["models"][0]
    decode, prompt = model["decode"][0]["tokens_per_s"], model["prompt"][0]["tokens_per_s"]
    floor = 1e3 / model["decode"][0]["floor_ms"]

    print(f"{args.shape}, {args.threads} threads, context {args.context}, prompt {args.prompt} (medians)")
    print(f"{'':20} {'decode':>10} {'ratio':>6} {'prompt':>10} {'ratio':>6}   tokens/s; ratios of ours to theirs")
    print(f"{'gemma-run ' + args.type:20} {decode:10.2f} {'':6} {prompt:10.2f}")
    for mixture, (their_prompt, their_decode) in theirs.items():
        ratios = decode / their_decode, prompt / their_prompt
        print(
            f"{'llama.cpp ' + mixture:20} {their_decode:10.2f} {ratios[0]:6.2f} {their_prompt:10.2f} {ratios[1]:6.2f}"
        )
    print(f"{'floor':20} {floor:10.2f}   of {ours['read_gb_per_s']:.1f} GB/s")


if __name__ == "__main__":
    main()
