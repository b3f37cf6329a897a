#!/usr/bin/env python3
"""Measures how soon gemma-run shows its first token on a GPU, and how much of the GPU's memory it takes.

    tools/bench/start.py --run build/cuda/bin/gemma-run -m MODEL [--context 8192] [--repeats 5]

Beside the time from the process's start to its first byte of text stands what it cannot be faster than: an empty program that
makes a CUDA context, and the weights' copy at the rate of pinned memory. The model file is read once before, so that it
lies in the page cache. For a model of full size without its weights: `gemma-bench --shape 2b --save FILE`.
"""

import argparse
import json
import pathlib
import re
import statistics
import subprocess
import sys
import time

# An empty program, and the rate of pinned memory: CUDA's runtime called from a process of its own.
EMPTY_PROGRAM = """
import ctypes, sys, time
started = time.perf_counter()
cuda = ctypes.CDLL("libcudart.so")
def check(status):
    if status != 0:
        raise SystemExit(f"CUDA error {status}")
check(cuda.cudaFree(None))
context_s = time.perf_counter() - started
size = 1 << 30
host, gpu = ctypes.c_void_p(), ctypes.c_void_p()
check(cuda.cudaMallocHost(ctypes.byref(host), ctypes.c_size_t(size)))
check(cuda.cudaMalloc(ctypes.byref(gpu), ctypes.c_size_t(size)))
copies = []
for _ in range(4):
    started = time.perf_counter()
    check(cuda.cudaMemcpy(gpu, host, ctypes.c_size_t(size), 1))
    copies.append(time.perf_counter() - started)
print(context_s, size / min(copies))
"""


def measure_machine(repeats):
    """Seconds that a CUDA context takes, and bytes a second of a copy from pinned memory."""
    runs = [subprocess.run([sys.executable, "-c", EMPTY_PROGRAM], capture_output=True, text=True, check=True).stdout.split()
            for _ in range(repeats)]
    return statistics.median(float(run[0]) for run in runs), max(float(run[1]) for run in runs)


def first_token(command):
    """Seconds from the process's start to its first byte."""
    started = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        shown = process.stdout.read(1)
        seconds = time.perf_counter() - started
        log = process.communicate()[1].decode()
    if not shown or process.returncode != 0:
        raise SystemExit(f"{' '.join(map(str, command))} failed: {log.strip()}")
    return seconds


def used_mib():
    listed = subprocess.run(["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"],
                            capture_output=True, text=True, check=True).stdout
    return int(listed.split()[0])


def measure_memory(command):
    """MiB in use on the GPU while it runs, less what was in use before, and what the program says of it."""
    before = used_mib()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.read(1)
        used = used_mib() - before
        log = process.communicate()[1].decode()
    return used, re.findall(r"^(?:cache|memory|weights|device).*$", log, re.MULTILINE)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", default="build/cuda/bin/gemma-run", help="the gemma-run to measure")
    parser.add_argument("-m", "--model", required=True, help="a .gemma file")
    parser.add_argument("--context", type=int, default=8192)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()

    model = pathlib.Path(options.model)
    command = [options.run, "prompt", "Once upon a time", "-m", model, "--device", "cuda", "--context", str(options.context),
               "--raw", "--ignore-eos", "--seed", "1"]
    with model.open("rb") as file:
        while file.read(1 << 26):
            pass
    context_s, pinned_bytes_per_s = measure_machine(3)
    seconds = [first_token([*command, "-n", "1", "--quiet"]) for _ in range(options.repeats)]
    used, said = measure_memory([*command, "-n", "1000", "--stats"])
    copy_s = model.stat().st_size / pinned_bytes_per_s
    result = {"context_s": context_s, "pinned_gb_per_s": pinned_bytes_per_s / 1e9, "copy_s": copy_s,
              "first_token_s": statistics.median(seconds), "fastest_s": min(seconds), "slowest_s": max(seconds),
              "gpu_memory_used_mib": used, "stats": said}
    if options.json:
        print(json.dumps(result, indent=2))
        return
    size = model.stat().st_size / 1e9
    print(f"first token after {result['first_token_s']:.2f} s ({min(seconds):.2f} to {max(seconds):.2f}); a CUDA context takes "
          f"{context_s:.2f} s and the copy of {size:.2f} GB at {result['pinned_gb_per_s']:.1f} GB/s {copy_s:.2f} s")
    print(f"GPU memory in use: {used} MiB")
    print("\n".join(said))


if __name__ == "__main__":
    main()
