#!/usr/bin/env python3
"""Measures gemma-run as people use it: a second turn of a long chat, batches of many prompts, and prompts that share
their beginning.

    tools/bench/serving.py --run build/release/bin/gemma-run [-m MODEL] [--history 700] [--prompts 512]
                           [--parallel 1,8,32,128]

Prints a table, or one JSON document with --json. Beside each batch stands its floor: what making its tokens must read,
the weights once a step and each prompt's cache, at the bandwidth that gemma-bench (beside gemma-run) measures. Reading
the prompts comes on top of it. For a model of full size without its weights:
`gemma-bench --shape 2b --save FILE`.
"""

import argparse
import json
import math
import pathlib
import random
import re
import subprocess
import tempfile

WORDS = "time day little house tree boy girl dog cat red big happy water play friend home mother sun bird good".split()


def text(count, seed):
    """About so many tokens, and the same for the same seed."""
    choose = random.Random(seed)
    return " ".join(choose.choice(WORDS) for _ in range(count))


def run(arguments, stdin=""):
    done = subprocess.run(arguments, input=stdin, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(map(str, arguments))} failed: {done.stderr.strip()}")
    return done


def number(pattern, log):
    """What the pattern's group matches in each line that has it."""
    return [float(found.replace(",", "")) for found in re.findall(pattern, log)]


def measure_chat(options):
    """Seconds to the first token of a chat's first turn, which reads it all, and of its second."""
    turns = text(options.history, 1) + "\n" + text(12, 2) + "\n"
    log = run([options.run, "chat", *options.common, "--stats", "--seed", "1", "-n", "8"], turns).stderr
    prompts = re.findall(r"^prompt +(\d+) tokens? in ([\d.]+) s", log, re.MULTILINE)
    (first, first_s), (second, second_s) = [(int(tokens), float(seconds)) for tokens, seconds in prompts[:2]]
    return {"history_tokens": first, "first_turn_s": first_s, "second_turn_tokens": second, "second_turn_s": second_s}


def measure_batch(options, prompts, parallel, max_tokens):
    with tempfile.TemporaryDirectory() as folder:
        source = pathlib.Path(folder) / "prompts.txt"
        source.write_text("".join(prompt + "\n" for prompt in prompts), encoding="utf-8")
        log = run([options.run, "batch", source, "-o", pathlib.Path(folder) / "answers.jsonl", *options.common,
                   "--parallel", str(parallel), "-n", str(max_tokens), "--ignore-eos", "--seed", "1", "--raw"]).stderr
    prompt_tokens, = number(r"([\d,]+) tokens of prompts", log)
    shared, = number(r"([\d,]+) of them shared", log)
    tokens, = number(r"([\d,]+) tokens? of answers", log)
    seconds, = number(r"answers in ([\d.]+) s", log)
    return {"parallel": parallel, "prompt_tokens": prompt_tokens, "shared_tokens": shared, "tokens": tokens,
            "seconds": seconds, "tokens_per_s": tokens / seconds}


def measure_floor(options, context):
    """Bytes of weights that a step reads, of cache that a token reads behind `context` positions, and bytes a second."""
    bench = options.bench or pathlib.Path(options.run).with_name("gemma-bench")
    model = ["-m", options.model] if options.model else []
    report = json.loads(run([bench, "--device", options.device, *model, "--context", str(context), "--rows", "1,2",
                             "--prompt", "0", "--tokens", "1", "--json"]).stdout)
    one, two = (decode["bytes"] for decode in report["models"][0]["decode"])
    return {"weights_bytes": 2 * one - two, "cache_bytes": two - one, "bytes_per_s": report["read_gb_per_s"] * 1e9}


def add_floor(batch, floor, prompts):
    """The first token of an answer comes with its prompt; the others take steps, which are full at best."""
    tokens = batch["tokens"] - prompts
    steps = math.ceil(tokens / min(batch["parallel"], prompts))
    batch["floor_s"] = (steps * floor["weights_bytes"] + tokens * floor["cache_bytes"]) / floor["bytes_per_s"]
    batch["share"] = batch["floor_s"] / batch["seconds"]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", default="build/release/bin/gemma-run", help="the gemma-run to measure")
    parser.add_argument("--bench", help="the gemma-bench that measures the bandwidth (default: beside gemma-run)")
    parser.add_argument("-m", "--model", help="a .gemma file (default: the built-in demo model)")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--context", type=int, help="positions of prompt and answer in batches")
    parser.add_argument("--history", type=int, default=700, help="tokens of the chat's first turn")
    parser.add_argument("--prompts", type=int, default=512, help="prompts of a batch, of 100 to 600 tokens each")
    parser.add_argument("--max-tokens", type=int, default=128, help="tokens of each answer")
    parser.add_argument("--parallel", default="1,8,32", help="prompts at once, one batch each: 1,8,32,128")
    parser.add_argument("--documents", type=int, default=200, help="prompts that share an instruction")
    parser.add_argument("--instruction", type=int, default=700, help="its tokens")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    options.common = ["--device", options.device] + (["-m", options.model] if options.model else [])

    chat = measure_chat(options)
    options.common += ["--context", str(options.context)] if options.context else []
    prompts = [text(random.Random(i).randint(100, 600), i) for i in range(options.prompts)]
    batches = [measure_batch(options, prompts, int(parallel), options.max_tokens)
               for parallel in options.parallel.split(",")]
    positions = batches[0]["prompt_tokens"] / options.prompts + options.max_tokens / 2  # on average
    floor = measure_floor(options, round(positions))
    for batch in batches:
        add_floor(batch, floor, options.prompts)
    documents = [text(60, 1000 + i) for i in range(options.documents)]
    instruction = text(options.instruction, 3)
    parallel = max(int(parallel) for parallel in options.parallel.split(","))
    shared = measure_batch(options, [f"{instruction} {document}" for document in documents], parallel, 16)
    apart = measure_batch(options, [f"{i} {instruction} {document}" for i, document in enumerate(documents)], parallel, 16)

    if options.json:
        print(json.dumps({"chat": chat, "floor": floor, "batches": batches, "shared": shared, "apart": apart}, indent=2))
        return
    print(f"chat: first token after {chat['first_turn_s']:.3f} s of a turn that reads {chat['history_tokens']} tokens, after "
          f"{chat['second_turn_s']:.3f} s of the next, which reads {chat['second_turn_tokens']}")
    for batch in batches:
        print(f"batch of {options.prompts}, {batch['parallel']:3} at once: {batch['tokens_per_s']:9.1f} tokens/s "
              f"({batch['prompt_tokens']:.0f} tokens of prompts, {batch['tokens']:.0f} of answers, {batch['seconds']:.1f} s; the floor is "
              f"{batch['floor_s']:.1f} s, {batch['share']:.1%} of that)")
    print(f"{options.documents} documents behind {options.instruction} tokens of instruction: {shared['seconds']:.2f} s, "
          f"{apart['seconds']:.2f} s if nothing is shared ({shared['shared_tokens']:.0f} tokens not read again)")


if __name__ == "__main__":
    main()
