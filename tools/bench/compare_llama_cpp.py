#!/usr/bin/env python3
"""Measures llama.cpp on random weights of a Gemma 2 shape, to set beside `gemma-bench --shape`.

    python3 -m venv build/llama && build/llama/bin/pip install llama-cpp-python gguf numpy
    build/llama/bin/python tools/bench/compare_llama_cpp.py --shape 2b --bench build/release/bin/gemma-bench

Runs both, one after the other and with the same number of threads, and prints one line each and the ratio.
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


def write_gguf(path, shape):
    """A GGUF file of bf16 noise; llama.cpp's speed does not depend on what the weights say."""
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
    # One block of noise, repeated: random enough for timing, and made in seconds.
    noise = (random.standard_normal(1 << 22).astype(np.float32) * 0.02).view(np.uint32)
    noise = (noise >> 16).astype(np.uint16)

    def matrix(name, rows, columns):
        data = np.resize(noise, rows * columns).reshape(rows, columns)
        writer.add_tensor(name, data.view(np.uint8), raw_dtype=gguf.GGMLQuantizationType.BF16)

    def norm(name):
        writer.add_tensor(name, np.ones(hidden, dtype=np.float32))

    matrix("token_embd.weight", VOCABULARY, hidden)
    norm("output_norm.weight")
    for i in range(layers):
        norm(f"blk.{i}.attn_norm.weight")
        matrix(f"blk.{i}.attn_q.weight", heads * head_dim, hidden)
        matrix(f"blk.{i}.attn_k.weight", kv_heads * head_dim, hidden)
        matrix(f"blk.{i}.attn_v.weight", kv_heads * head_dim, hidden)
        matrix(f"blk.{i}.attn_output.weight", hidden, heads * head_dim)
        norm(f"blk.{i}.post_attention_norm.weight")
        norm(f"blk.{i}.ffn_norm.weight")
        matrix(f"blk.{i}.ffn_gate.weight", feed_forward, hidden)
        matrix(f"blk.{i}.ffn_up.weight", feed_forward, hidden)
        matrix(f"blk.{i}.ffn_down.weight", hidden, feed_forward)
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
    return prompt / statistics.median(prompt_seconds), 1 / statistics.median(step_seconds)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="2b")
    parser.add_argument("--bench", default="build/release/bin/gemma-bench", help="the gemma-bench to compare with")
    parser.add_argument("--gguf", help="where the random GGUF file is kept (default: build/random-SHAPE-bf16.gguf)")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()

    path = args.gguf or f"build/random-{args.shape}-bf16.gguf"
    if not os.path.exists(path):
        write_gguf(path, args.shape)
    llama_prompt, llama_decode = measure_llama(
        path, args.threads, args.context, args.prompt, args.tokens, args.repeats
    )
    command = [args.bench, "--shape", args.shape, "--json"]
    for name in ("threads", "context", "prompt", "tokens", "repeats"):
        command += [f"--{name}", str(getattr(args, name))]
    ours = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    model = ours["models"][0]
    decode, prompt = model["decode"][0]["tokens_per_s"], model["prompt"][0]["tokens_per_s"]

    print(f"{args.shape} bf16, {args.threads} threads, context {args.context}, prompt {args.prompt} (medians)")
    print(f"             {'decode':>12} {'prompt':>12}   tokens/s")
    print(f"llama.cpp    {llama_decode:12.2f} {llama_prompt:12.2f}")
    print(f"gemma-run    {decode:12.2f} {prompt:12.2f}")
    print(f"ratio        {decode / llama_decode:12.2f} {prompt / llama_prompt:12.2f}")
    print(f"floor        {1e3 / model['decode'][0]['floor_ms']:12.2f}                of {ours['read_gb_per_s']:.1f} GB/s")


if __name__ == "__main__":
    main()
