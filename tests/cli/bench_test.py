"""gemma-bench as its users meet it: $GEMMA_BENCH is its path."""

import json
import os
import pathlib
import shutil
import struct
import subprocess
import tempfile
import unittest
import xml.etree.ElementTree

from gemma_run import DEMO_MODEL, DONE, FAILED, TIMEOUT_S, USAGE, environment

BENCH = os.environ["GEMMA_BENCH"]
CONTEXT = 1024  # the demo model's
BRIEFLY = ("--device", "cpu", "--repeats", "1")


class BenchTest(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)

    def bench(self, *arguments):
        return subprocess.run([BENCH, *arguments], env=environment(), stdin=subprocess.DEVNULL, capture_output=True,
                              timeout=TIMEOUT_S, check=False, encoding="utf-8")

    def bench_well(self, *arguments):
        run = self.bench(*BRIEFLY, *arguments)
        self.assertEqual(run.returncode, DONE, run.stderr)
        return run

    def assert_fails(self, code, message, *arguments, lines=1):
        run = self.bench(*arguments)
        self.assertEqual((run.returncode, run.stdout, run.stderr.count("\n")), (code, "", lines), run.stderr)
        self.assertTrue(run.stderr.startswith("gemma-bench: "), run.stderr)
        self.assertIn(message, run.stderr)
        if code == USAGE:
            self.assertTrue(run.stderr.endswith(" (see gemma-bench --help)\n"), run.stderr)


class BenchGives(BenchTest):
    def test_a_document_of_finite_numbers_and_a_drawing(self):
        drawing = self.folder / "roofline.svg"
        run = self.bench_well("--json", "--plot", str(drawing), "--context", "8,40", "--rows", "1,3", "--prompt", "16",
                              "--tokens", "1", "--bandwidth", "10", "--attention", "8,16", "--profile")
        self.assertEqual(run.stderr, "")

        def no_constant(name):
            self.fail(f"{name} is no number")

        document = json.loads(run.stdout, parse_constant=no_constant)
        self.assertEqual(list(document), ["device", "read_gb_per_s", "multiply_tflop_per_s", "models"])
        self.assertEqual(document["read_gb_per_s"], 10)
        self.assertGreater(document["multiply_tflop_per_s"], 0)
        model, = document["models"]
        self.assertEqual(list(model), ["model", "type", "cache", "weights_bytes", "decode", "prompt", "attention",
                                       "decode_profile", "prompt_profile", "host_share_of_a_core"])
        self.assertEqual([(entry["context"], entry["rows"]) for entry in model["decode"]], [(8, 1), (40, 1), (8, 3)])
        self.assertEqual([(entry["tokens"], entry["chunk"]) for entry in model["prompt"]], [(16, 16)])
        for entry in model["decode"] + model["prompt"]:
            self.assertEqual(list(entry)[2:], ["tokens_per_s", "ms", "bytes", "flop", "floor_ms", "share"])
            self.assertEqual(list(entry["ms"]), ["median", "fastest", "slowest"])
            for value in (entry["tokens_per_s"], entry["ms"]["median"], entry["bytes"], entry["flop"], entry["share"]):
                self.assertGreater(value, 0)
        self.assertEqual([entry["tokens"] for entry in model["attention"]], [8, 16])
        self.assertIn("attend", [part["part"] for part in model["decode_profile"]])
        self.assertGreater(model["host_share_of_a_core"], 0)

        labels = [element.text for element in xml.etree.ElementTree.parse(drawing).iter() if element.tag.endswith("text")]
        kind = model["type"]
        for label in (f"demo {kind}, 1 row at 40", f"demo {kind}, 3 rows at 8", f"demo {kind}, prompt of 16"):
            self.assertIn(label, labels)

    def test_a_table_for_people(self):
        run = self.bench_well("--tokens", "2", "--context", "8", "--prompt", "0", "--bandwidth", "10", "--kv-type", "auto")
        for words in ("reads 10.0 GB/s", "the built-in demo model", "decode  context", "of a core"):
            self.assertIn(words, run.stdout)

    def test_lengths_that_are_cut_to_the_context_and_says_so(self):
        run = self.bench_well("--json", "--prompt", "8192", "--context", "4096", "--tokens", "2", "--bandwidth", "10")
        self.assertEqual(run.stderr.splitlines(), [
            f"gemma-bench: --context 4096 is cut to {CONTEXT - 6}, what the model's context of {CONTEXT} leaves beside --tokens",
            f"gemma-bench: --prompt 8192 is cut to {CONTEXT}, the model's context"])
        model, = json.loads(run.stdout)["models"]
        self.assertEqual((model["prompt"][0]["tokens"], model["decode"][0]["context"]), (CONTEXT, CONTEXT - 6))

    def test_its_version_and_help(self):
        self.assertRegex(self.bench("--version").stdout, r"^gemma-bench \d+\.\d+\.\d+\n$")
        self.assertIn("--plot", self.bench("--help").stdout)


class BenchRefuses(BenchTest):
    def test_wrong_usage_in_one_line(self):
        for option, values in {
                "--bandwidth": ["nan", "-5", "0", "fast"],
                "--device": ["gpu", "cuda:", "cuda:-1", "cuda:x"],
                "--kv-type": ["q4"],
                "--tokens": ["0", "99999999999"],
                "--rows": ["0", "1,0"],
                "--shape": ["3b"],
        }.items():
            for value in values:
                with self.subTest(option=option, value=value):
                    self.assert_fails(USAGE, option, option, value)
        self.assert_fails(USAGE, "there is no option '--wings'", "--wings")
        self.assert_fails(USAGE, "there is no place for 'x'", "x")
        self.assert_fails(USAGE, "--shape", "--shape", "2b", "-m", str(DEMO_MODEL))

    def test_what_does_not_fit_the_model(self):
        self.assert_fails(FAILED, f"at most {CONTEXT - 5} fit", *BRIEFLY, "--tokens", "100000")
        self.assert_fails(FAILED, "--device cpu", "--device", "cuda:99")

    def test_a_drawing_that_cannot_be_written_before_it_measures(self):
        for file in ("/nowhere/roofline.svg", str(self.folder)):
            self.assert_fails(FAILED, file, *BRIEFLY, "--plot", file)

    def test_models_that_cannot_be_used(self):
        self.assert_fails(FAILED, "/nowhere.gemma", *BRIEFLY, "-m", "/nowhere.gemma")

    def test_a_model_whose_scales_are_no_numbers(self):
        file = self.folder / "model.gemma"
        shutil.copy(DEMO_MODEL, file)
        model = bytearray(file.read_bytes())
        size, = struct.unpack("<Q", model[:8])
        name = "layers.3.mlp.down.scales"
        begin, _ = json.loads(model[8:8 + size])[name]["data_offsets"]
        struct.pack_into("<H", model, 8 + size + begin, 0x7E00)
        file.write_bytes(model)
        self.assert_fails(FAILED, name, *BRIEFLY, "-m", str(file), lines=2)  # the second says how to make it anew


if __name__ == "__main__":
    unittest.main()
