"""README.md's console blocks, run as they stand: what they show is what a reader gets.

The programs in $GEMMA_BIN run on the CPU. Words must be the same; numbers with a fraction may differ as far as the order of
a sum in float32 makes them, which is another with each instruction set.
"""

import math
import os
import pathlib
import re
import subprocess
import tempfile
import unittest

README = pathlib.Path(os.environ["GEMMA_SOURCE_DIR"]) / "README.md"
PROGRAM = pathlib.Path(os.environ["GEMMA_BIN"]) / "gemma-run"
TOLERANCE = 1e-3
TIMEOUT_S = 240

ON_THE_CPU = f"""#!/bin/sh
command=$1
shift
test "$command" = tokenize || set -- --device cpu "$@"
exec '{PROGRAM}' "$command" "$@"
"""


def console_blocks():
    """Of each block its commands, and what is shown below each."""
    for block in re.findall(r"^```console\n(.*?)^```$", README.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL):
        steps = re.split(r"^\$ ", block, flags=re.MULTILINE)
        yield [(command, shown.rstrip("\n")) for command, _, shown in (step.partition("\n") for step in steps[1:])]


class ReadmeTest(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)
        (self.folder / "bin").mkdir()
        wrapper = self.folder / "bin" / "gemma-run"
        wrapper.write_text(ON_THE_CPU, encoding="utf-8")
        wrapper.chmod(0o755)

    def output_of(self, command, stdin):
        clean = {name: value for name, value in os.environ.items() if name != "GEMMA_MODEL"}
        environment = {**clean, "PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}"}
        run = subprocess.run(["bash", "-c", command], input=stdin, cwd=self.folder, env=environment, capture_output=True,
                             timeout=TIMEOUT_S, check=False, encoding="utf-8")
        self.assertEqual(run.returncode, 0, run.stderr)
        return run.stdout

    def assert_shown(self, output, shown):
        fraction = re.compile(r"-?\d+\.\d+")
        self.assertEqual(fraction.sub("X", output).rstrip("\n"), fraction.sub("X", shown), output)
        for is_value, should_value in zip(fraction.findall(output), fraction.findall(shown)):
            self.assertTrue(math.isclose(float(is_value), float(should_value), rel_tol=TOLERANCE, abs_tol=TOLERANCE), output)

    def run_step(self, command, shown):
        if command.startswith("cat "):  # shows what the reader is to write
            (self.folder / command.split()[1]).write_text(shown + "\n", encoding="utf-8")
            return
        typed = re.findall(r"^>>> (.*)\n?", shown, re.MULTILINE)
        answers = re.sub(r"^>>> .*\n?", "", shown, flags=re.MULTILINE)
        self.assert_shown(self.output_of(command, "".join(line + "\n" for line in typed)), answers.rstrip("\n"))

    def test_shows_what_its_commands_give(self):
        blocks = list(console_blocks())
        self.assertGreater(len(blocks), 3)
        for steps in blocks:
            for command, shown in steps:
                with self.subTest(command=command):
                    self.run_step(command, shown)


if __name__ == "__main__":
    unittest.main()
