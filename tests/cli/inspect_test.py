import json
import math
import pathlib
import struct
import tempfile
import unittest

from gemma_run import DEMO_MODEL, FAILED, USAGE, CommandLineTest


def header_of(model):
    size = struct.unpack("<Q", model[:8])[0]
    return 8 + size, json.loads(model[8:8 + size])


class Inspect(CommandLineTest):
    def test_gives_the_documented_fields(self):
        document = self.run_json("inspect")
        self.assertEqual(list(document), ["config", "layers", "tensors", "weights_bytes", "kv_cache"])
        self.assertEqual([layer["kind"] for layer in document["layers"]], ["local", "global"] * 4)
        self.assertEqual(document["config"]["hidden_size"], 320)
        self.assertEqual(document["config"]["sliding_window"], 128)
        self.assertEqual(list(document["kv_cache"]),
                         ["context", "local_bytes", "global_bytes", "total_bytes", "without_window_bytes"])

    def test_counts_what_is_in_the_file(self):
        document = self.run_json("inspect", "-m", str(DEMO_MODEL))
        self.assertEqual(document, self.run_json("inspect"))
        _, header = header_of(DEMO_MODEL.read_bytes())
        header.pop("__metadata__")
        self.assertEqual(document["tensors"], len(header))
        sizes = {name: end - begin for name, info in header.items() for begin, end in [info["data_offsets"]]}
        weights = sum(size for name, size in sizes.items() if name.startswith(("embed", "layers.", "final_norm", "head")))
        self.assertEqual(document["weights_bytes"], weights)

    def test_tells_what_the_cache_takes(self):
        layers, kv_heads, head_dim, f32 = 4, 4, 64, 4
        position = layers * 2 * kv_heads * head_dim * f32
        cache = self.run_json("inspect", "--context", "1024")["kv_cache"]
        self.assertEqual(cache["context"], 1024)
        self.assertEqual(cache["global_bytes"], 1024 * position)
        self.assertEqual(cache["without_window_bytes"], 2 * 1024 * position)
        self.assertEqual(cache["total_bytes"], cache["local_bytes"] + cache["global_bytes"])
        # A ring holds the window and a little slack.
        self.assertGreaterEqual(cache["local_bytes"], 128 * position)
        self.assertLess(cache["local_bytes"], 300 * position)
        longer = self.run_json("inspect", "--context", "8192")["kv_cache"]
        self.assertEqual((longer["local_bytes"], longer["global_bytes"]), (cache["local_bytes"], 8192 * position))
        halved = self.run_json("inspect", "--context", "1024", "--kv-type", "bf16")["kv_cache"]
        self.assertEqual(halved["total_bytes"] * 2, cache["total_bytes"])
        narrow = self.run_json("inspect", "--context", "1024", "--window", "1")["kv_cache"]
        self.assertLess(narrow["local_bytes"], cache["local_bytes"])

    def test_takes_the_type_of_the_cache_from_the_device(self):
        def on(*arguments):
            return self.run_json("inspect", *arguments)["kv_cache"]["total_bytes"]

        # What a model will need of a GPU can be asked where there is none.
        self.assertEqual(on("--device", "cuda", "--threads", "2"), on("--kv-type", "bf16"))
        self.assertEqual(on("--device", "cpu"), on("--kv-type", "f32"))
        self.assertEqual(on("--device", "cuda", "--kv-type", "q8"), on("--device", "cpu", "--kv-type", "q8"))
        self.assertIn(on("--device", "auto"), (on("--device", "cpu"), on("--device", "cuda")))

    def test_prints_a_table_for_people(self):
        run = self.run_well("inspect", "--context", "8192", "--window", "64")
        for words in ("4 local, 4 global", "narrowed from 128", "13,117,760", "for 8192 positions in f32", "without the rings"):
            self.assertIn(words, run.out)
        self.assertLessEqual(max(map(len, run.out.splitlines())), 80)

    def test_verifies_every_byte(self):
        run = self.run_well("inspect", "--verify", "-m", str(DEMO_MODEL))
        self.assertIn("Verified", run.err)
        whole = bytearray(DEMO_MODEL.read_bytes())
        start, header = header_of(whole)
        with tempfile.TemporaryDirectory() as folder:
            file = pathlib.Path(folder) / "flipped.gemma"
            for name in ("embed.codes", "layers.7.mlp.down.scales", "final_norm", "tokenizer"):
                begin, end = header[name]["data_offsets"]
                whole[start + end - 1] ^= 1
                file.write_bytes(whole)
                whole[start + end - 1] ^= 1
                self.assert_fails(FAILED, name, "inspect", "--verify", "-m", str(file))
                self.run_well("inspect", "-m", str(file))
            # In a weight, it is harmless.
            begin, _ = header["layers.0.attn.qkv.codes"]["data_offsets"]
            whole[start + begin] ^= 1
            file.write_bytes(whole)
            self.run_well("prompt", "Once", "-n", "3", "-m", str(file))

    def test_is_what_commands_name_when_weights_are_no_numbers(self):
        model = bytearray(DEMO_MODEL.read_bytes())
        start, header = header_of(model)
        struct.pack_into("<f", model, start + header["final_norm"]["data_offsets"][0], math.nan)
        with tempfile.TemporaryDirectory() as folder:
            file = pathlib.Path(folder) / "damaged.gemma"
            file.write_bytes(model)
            prompts = pathlib.Path(folder) / "prompts.txt"
            prompts.write_text("Once\nupon\n")
            model = ("-m", str(file), "--quiet")
            for command in (("prompt", "Once", "-n", "3", *model), ("score", *model), ("chat", "-n", "3", *model),
                            ("batch", str(prompts), "-o", folder + "/out.jsonl", "-n", "3", *model)):
                run = self.run_well(*command, stdin=b"Once\n")
                self.assertEqual(run.err.count("\n"), 1, run.err)
                self.assertIn(f"see gemma-run inspect --verify -m '{file}'", run.err)
            self.assert_fails(FAILED, "final_norm", "inspect", "--verify", "-m", str(file))

    def test_refuses_what_makes_no_sense(self):
        self.assert_fails(USAGE, "-m FILE", "inspect", "--verify")
        self.assert_fails(USAGE, "--context", "inspect", "--context", "0")
        self.assert_fails(FAILED, "/nowhere", "inspect", "-m", "/nowhere")
        self.assert_fails(FAILED, "128", "inspect", "--window", "200")
        with tempfile.NamedTemporaryFile(suffix=".gemma") as file:
            file.write(struct.pack("<Q", 2**60) + b"{}")
            file.flush()
            self.assert_fails(FAILED, file.name, "inspect", "-m", file.name)


if __name__ == "__main__":
    unittest.main()
