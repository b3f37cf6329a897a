"""Runs the real gemma-run for the tests beside this file; $GEMMA_RUN is its path, $GEMMA_SOURCE_DIR the source tree's.

What a command runs on is $GEMMA_TEST_DEVICE, the CPU by default, wherever a test does not name a --device itself: what is
expected must not depend on whether the machine has a GPU.
"""

import json
import os
import pathlib
import subprocess
import sys
import unittest

PROGRAM = os.environ["GEMMA_RUN"]
SOURCE_DIR = pathlib.Path(os.environ["GEMMA_SOURCE_DIR"])
DEVICE = os.environ.get("GEMMA_TEST_DEVICE", "cpu")
DEMO_MODEL = SOURCE_DIR / "models" / "demo.gemma"  # which is built in, in q8
DEMO_MODEL_BF16 = SOURCE_DIR / "tests" / "golden" / "demo-bf16.gemma"  # what it was made from
# What transformers gives for the model in bf16.
REFERENCE = {
    prompt["name"]: prompt
    for prompt in json.loads((SOURCE_DIR / "tests" / "golden" / "reference.json").read_text(encoding="utf-8"))["prompts"]
}

DONE, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130
SKIPPED = 77  # what CTest is told to take for skipped
TIMEOUT_S = 240
COMMANDS_WITH_A_DEVICE = ("prompt", "chat", "batch", "score", "inspect")


def environment(**changes):
    """The environment without what would change a test's meaning, and with `changes`."""
    clean = {name: value for name, value in os.environ.items() if name not in ("GEMMA_MODEL", "NO_COLOR")}
    return {**clean, "TERM": "xterm", **changes}


def command(*arguments):
    """The command line of a run, on the device that is tested."""
    if arguments and arguments[0] in COMMANDS_WITH_A_DEVICE and "--device" not in arguments:
        arguments = (arguments[0], "--device", DEVICE, *arguments[1:])
    return [PROGRAM, *arguments]


def start(*arguments, **options):
    settings = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "env": environment()}
    return subprocess.Popen(command(*arguments), **{**settings, **options})


class Run:
    """One finished run: exit code, and both outputs as text."""

    def __init__(self, *arguments, stdin=b"", **options):
        process = start(*arguments, stdin=subprocess.PIPE, **options)
        out, err = process.communicate(stdin, timeout=TIMEOUT_S)
        self.code = process.returncode
        self.out = (out or b"").decode("utf-8")
        self.err = (err or b"").decode("utf-8")

    def json(self):
        return json.loads(self.out)


class CommandLineTest(unittest.TestCase):
    def run_well(self, *arguments, **options):
        run = Run(*arguments, **options)
        self.assertEqual(run.code, DONE, run.err)
        return run

    def run_json(self, *arguments, **options):
        run = self.run_well(*arguments, "--json", **options)
        self.assertTrue(run.out.endswith("}\n"), "one document and a line break")
        return run.json()

    def assert_fails(self, code, message, *arguments, **options):
        """The run says `message` in one line on standard error, nothing on standard output, and exits with `code`."""
        run = Run(*arguments, **options)
        lines = [line for line in run.err.splitlines() if not line.startswith("Using the built-in demo model")]
        self.assertEqual((run.code, run.out, len(lines)), (code, "", 1), run.err)
        self.assertTrue(lines[0].startswith("gemma-run: "), run.err)
        self.assertIn(message, lines[0])
        if code == USAGE:
            self.assertIn("--help)", lines[0])


def main():
    """Runs the tests of the file that is the program: skipped, all at once, where the device is missing."""
    if DEVICE != "cpu":
        probe = Run("prompt", "Once", "-n", "1", "--quiet")
        if probe.code != DONE:
            print(f"no GPU: skipped ({probe.err.strip()})")
            sys.exit(SKIPPED)
    unittest.main()
