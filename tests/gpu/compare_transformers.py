#!/usr/bin/env python3
"""Compares gemma-run on the GPU with Hugging Face transformers, on random weights of real Gemma 2 shapes.

    tests/gpu/compare_transformers.py --bin build/cuda/bin [--shape 2b] [--shape 27b-heads] [--folder DIR]

For each shape, transformers makes a checkpoint, gemma-convert converts it, and 600 random ids are scored three times:
by gemma-run, by transformers in bfloat16, and by transformers in float32, which is the truth. Log-probabilities of
gemma-run must be at least as close to it, on average, as those of transformers in bfloat16. Exits with 1 if not.

Needs torch, transformers 5, a GPU, and three times the size of the checkpoint in GPU memory and on disk (16 GB for 2b).
"""

import argparse
import gc
import json
import math
import pathlib
import shutil
import subprocess
import sys
import tempfile

import torch
from transformers import Gemma2Config, Gemma2ForCausalLM

SHAPES = {
    # The whole model.
    "2b": dict(
        hidden_size=2304, intermediate_size=9216, num_hidden_layers=26, num_attention_heads=8, num_key_value_heads=4,
        head_dim=256, query_pre_attn_scalar=256, sliding_window=4096,
    ),
    # 27B's heads (scaled by 144, not by their size) in three layers, with a window that 600 tokens leave behind.
    "27b-heads": dict(
        hidden_size=4608, intermediate_size=36864, num_hidden_layers=3, num_attention_heads=32, num_key_value_heads=16,
        head_dim=128, query_pre_attn_scalar=144, sliding_window=256,
    ),
}
VOCABULARY = 256_000
TOKENS = 600
BOS = 2
TOKENIZER = pathlib.Path(__file__).resolve().parent.parent / "golden" / "tokenizer.model"


def make_checkpoint(shape, folder):
    """Weights that keep activations of order one, and give logits a deviation of four, about that of a real model."""
    config = Gemma2Config(vocab_size=VOCABULARY, max_position_embeddings=8192, **SHAPES[shape])
    torch.manual_seed(1)
    with torch.device("cuda"):
        model = Gemma2ForCausalLM(config).to(torch.bfloat16)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() == 2:
                weight.normal_(0, 1 / math.sqrt(weight.shape[1]))
            else:
                weight.normal_(3.0 if name == "model.norm.weight" else 0.0, 0.1)
    model.save_pretrained(folder)
    shutil.copy(TOKENIZER, folder)


def log_probabilities_of_transformers(folder, dtype, ids):
    """Of each id but the first, given those before it."""
    model = Gemma2ForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="eager").to("cuda").eval()
    # Google's code rounds the embedding's factor to bfloat16, whatever the rest is computed in.
    factor = torch.as_tensor(model.model.embed_tokens.embed_scale)
    expected = torch.tensor(model.config.hidden_size**0.5)
    if not torch.allclose(factor.float().cpu(), expected, rtol=2**-8):
        sys.exit(f"compare_transformers: the embedding's factor is {factor}, not {expected}; transformers has changed")
    model.model.embed_tokens.embed_scale = expected.to(torch.bfloat16).to(factor.dtype).to(factor.device)
    with torch.inference_mode():
        logits = model(torch.tensor([ids], device="cuda"), use_cache=False).logits[0, :-1].double()
        log_probabilities = logits.log_softmax(-1).gather(1, torch.tensor(ids[1:], device="cuda")[:, None])[:, 0].cpu()
    del model, logits
    gc.collect()
    torch.cuda.empty_cache()
    return log_probabilities


def log_probabilities_of_gemma_run(programs, folder, ids):
    weights = folder / "model.gemma"
    subprocess.run([programs / "gemma-convert", folder, "-o", weights, "--quiet"], check=True)
    ids_file = folder / "ids.txt"
    ids_file.write_text(" ".join(map(str, ids)), encoding="utf-8")
    command = [programs / "gemma-run", "score", "-m", weights, "--tokens-file", ids_file, "--device", "cuda", "--json"]
    scored = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    return torch.tensor(scored["logprobs"], dtype=torch.float64)


def compare(shape, programs, parent):
    """Whether gemma-run is close enough."""
    with tempfile.TemporaryDirectory(dir=parent) as name:
        folder = pathlib.Path(name)
        make_checkpoint(shape, folder)
        gc.collect()
        torch.cuda.empty_cache()
        generator = torch.Generator().manual_seed(2)
        ids = [BOS] + torch.randint(0, VOCABULARY, (TOKENS - 1,), generator=generator).tolist()
        truth = log_probabilities_of_transformers(folder, torch.float32, ids)
        theirs = log_probabilities_of_transformers(folder, torch.bfloat16, ids)
        ours = log_probabilities_of_gemma_run(programs, folder, ids)
    if ours.shape != truth.shape:
        print(f"{shape}: gemma-run gave {len(ours)} log-probabilities instead of {len(truth)}")
        return False
    print(f"{shape}: log-probabilities of {len(truth)} tokens, deviation {truth.std():.3f}")
    errors = {}
    for name, found in (("gemma-run", ours), ("transformers in bfloat16", theirs)):
        difference = (found - truth).abs()
        errors[name] = difference.mean().item()
        print(f"{shape}: |{name} - transformers in float32|: mean {errors[name]:.6f}, largest {difference.max():.6f}")
    is_close = errors["gemma-run"] <= errors["transformers in bfloat16"]
    print(f"{shape}: gemma-run is {'at least as close' if is_close else 'FURTHER AWAY'}")
    return is_close


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bin", type=pathlib.Path, default=pathlib.Path("build/cuda/bin"), help="folder of gemma-run")
    parser.add_argument("--shape", action="append", choices=SHAPES, help="[all of them]")
    parser.add_argument("--folder", help="where checkpoints are made, and removed again [the temporary folder]")
    options = parser.parse_args()
    torch.set_float32_matmul_precision("highest")
    results = [compare(shape, options.bin.resolve(), options.folder) for shape in options.shape or SHAPES]
    sys.exit(0 if all(results) else 1)


if __name__ == "__main__":
    main()
