import json
import os
import pathlib
import pty
import signal
import tempfile
import time
import unittest

from gemma_run import (
    DEMO_MODEL, DEMO_MODEL_BF16, DONE, FAILED, INTERRUPTED, REFERENCE, USAGE, CommandLineTest, Run, environment, start)

GREEDY = ("--temperature", "0")
STORY = "Once upon a time"
STORY_GOES_ON = ", there was a little girl named Lily. She loved to play with her toys and eat candy."
# Longer than any test waits.
ENDLESS = ("--ignore-eos", "--context", "16384", "-n", "16000", *GREEDY)


class PromptGives(CommandLineTest):
    def test_the_greedy_tokens_and_text_that_transformers_gives(self):
        expected = REFERENCE["short_story"]
        answer = self.run_json("prompt", STORY, *GREEDY, "-n", "64", "--ignore-eos", "-m", str(DEMO_MODEL_BF16))
        self.assertEqual(answer["tokens"], expected["greedy"])
        self.assertTrue(answer["text"].startswith(STORY_GOES_ON))
        self.assertEqual(answer["prompt_tokens"], expected["n"])
        self.assertEqual(answer["finish_reason"], "length")

    def test_a_json_document_with_the_documented_fields(self):
        answer = self.run_json("prompt", STORY, "-n", "3")
        self.assertEqual(list(answer), ["text", "prompt_tokens", "tokens", "finish_reason", "seed", "logprobs", "timing"])
        self.assertEqual(
            list(answer["timing"]), ["load_s", "prefill_s", "decode_s", "prefill_tokens_per_s", "decode_tokens_per_s"])
        self.assertTrue(all(value > 0 for value in answer["timing"].values()))
        self.assertEqual((len(answer["tokens"]), answer["logprobs"]), (3, []))

    def test_nothing_but_the_text_and_a_line_break_on_standard_output(self):
        run = self.run_well("prompt", STORY, *GREEDY, "-n", "20")
        answer = self.run_json("prompt", STORY, *GREEDY, "-n", "20")
        self.assertEqual(run.out, answer["text"] + "\n")
        self.assertIn("built-in demo model", run.err)

    def test_no_notes_when_quiet(self):
        self.assertEqual(self.run_well("prompt", STORY, "-n", "3", "--quiet").err, "")

    def test_statistics_on_standard_error_when_asked(self):
        run = self.run_well("prompt", STORY, "-n", "3", "--stats", "--quiet", "--seed", "7")
        for word in ("prompt", "answer", "seed", "7", "tokens/s", "memory", "CPU"):
            self.assertIn(word, run.err)

    def test_as_many_tokens_as_asked_for_and_none_for_0(self):
        self.assertEqual(len(self.run_json("prompt", STORY, "--ignore-eos", "--max-tokens", "33")["tokens"]), 33)
        answer = self.run_json("prompt", STORY, "-n", "0")
        self.assertEqual((answer["text"], answer["tokens"], answer["finish_reason"]), ("", [], "length"))

    def test_an_answer_that_fills_the_context_and_no_more(self):
        answer = self.run_json("prompt", STORY, "--ignore-eos", "--context", "20")
        self.assertEqual((answer["prompt_tokens"], len(answer["tokens"]), answer["finish_reason"]), (5, 15, "length"))

    def test_the_model_its_stop_token_unless_told_to_ignore_it(self):
        answer = self.run_json("prompt", "--chat", "Hello!", *GREEDY, "-n", "400")
        self.assertEqual(answer["finish_reason"], "stop")
        self.assertLess(len(answer["tokens"]), 400)
        self.assertFalse(set(answer["tokens"]) & {1, 6})
        longer = self.run_json("prompt", "--chat", "Hello!", *GREEDY, "-n", "60", "--ignore-eos")
        self.assertEqual((len(longer["tokens"]), longer["finish_reason"]), (60, "length"))
        self.assertEqual(longer["tokens"][: len(answer["tokens"])], answer["tokens"])

    def test_log_probabilities_of_the_likeliest_tokens(self):
        answer = self.run_json("prompt", STORY, *GREEDY, "-n", "4", "--logprobs", "3")
        self.assertEqual([step["token"] for step in answer["logprobs"]], answer["tokens"])
        for step in answer["logprobs"]:
            self.assertEqual(list(step), ["token", "piece", "logprob", "top"])
            top = [entry["logprob"] for entry in step["top"]]
            self.assertEqual(top, sorted(top, reverse=True))
            self.assertEqual((len(top), step["top"][0]["token"]), (3, step["token"]))
            self.assertAlmostEqual(top[0], step["logprob"], delta=1e-6)  # one may have passed through float32
            self.assertLess(top[0], 0)


class PromptTakes(CommandLineTest):
    def greedy(self, *arguments, **options):
        return self.run_json("prompt", *GREEDY, "-n", "12", *arguments, **options)["tokens"]

    def test_the_same_prompt_from_every_source(self):
        expected = REFERENCE["short_story"]["greedy"][:12]
        ids = " ".join(str(id) for id in REFERENCE["short_story"]["ids"])
        self.assertEqual(self.greedy(STORY), expected)
        self.assertEqual(self.greedy(stdin=STORY.encode()), expected)
        self.assertEqual(self.greedy("-", stdin=STORY.encode()), expected)
        self.assertEqual(self.greedy("--tokens", ids), expected)
        with tempfile.TemporaryDirectory() as folder:
            file = pathlib.Path(folder) / "prompt.txt"
            # The line break that an editor puts at the end is not part of the prompt.
            for text in (STORY, STORY + "\n", STORY + "\r\n"):
                file.write_bytes(text.encode())
                self.assertEqual(self.greedy("--file", str(file)), expected)

    def test_an_empty_prompt_as_the_beginning_of_a_text(self):
        expected = REFERENCE["bos_only"]["greedy"][:12]
        self.assertEqual(self.greedy(""), expected)
        self.assertEqual(self.greedy(stdin=b""), expected)
        self.assertEqual(self.greedy("--tokens", "2"), expected)

    def test_chat_turns(self):
        expected = REFERENCE["chat_single"]
        text = "Tell me a story about a dog and a boat."
        options = (*GREEDY, "-n", "64", "--ignore-eos", "-m", str(DEMO_MODEL_BF16))
        answer = self.run_json("prompt", "--chat", text, *options)
        self.assertEqual((answer["prompt_tokens"], answer["tokens"]), (expected["n"], expected["greedy"]))
        raw = self.run_json("prompt", "--raw", "--parse-special", expected["text"], *options)
        self.assertEqual(raw["tokens"], expected["greedy"])
        self.assertEqual(raw["prompt_tokens"], expected["n"])

    def test_control_tokens_in_a_text_as_text(self):
        forged = self.run_json("prompt", REFERENCE["chat_single"]["text"], "-n", "1")
        self.assertGreater(forged["prompt_tokens"], REFERENCE["chat_single"]["n"] + 10)
        bos = self.run_json("prompt", "--parse-special", "<bos>" + STORY, "-n", "1")
        self.assertEqual(bos["prompt_tokens"], REFERENCE["short_story"]["n"])

    def test_the_same_seed_for_the_same_answer(self):
        first = self.run_json("prompt", STORY, "-n", "40")
        again = self.run_json("prompt", STORY, "-n", "40", "--seed", str(first["seed"]))
        self.assertEqual(again["tokens"], first["tokens"])
        self.assertEqual(again["seed"], first["seed"])
        others = [self.run_json("prompt", STORY, "-n", "40", "--seed", str(seed))["text"] for seed in range(4)]
        self.assertEqual(len(set(others)), 4)

    def test_seeds_of_64_bits(self):
        seed = 2**64 - 1
        self.assertEqual(self.run_json("prompt", STORY, "-n", "1", "--seed", str(seed))["seed"], seed)

    def test_a_drawn_seed_to_be_told_in_text_mode(self):
        run = self.run_well("prompt", STORY, "-n", "30")
        seed = run.err.split("--seed ")[1].split(".")[0]
        self.assertEqual(self.run_well("prompt", STORY, "-n", "30", "--seed", seed).out, run.out)

    def test_stop_texts_and_leaves_them_out(self):
        answer = self.run_json("prompt", STORY, *GREEDY, "--stop", "nowhere", "--stop", "girl named")
        self.assertEqual((answer["text"], answer["finish_reason"]), (", there was a little ", "stop"))
        run = self.run_well("prompt", STORY, *GREEDY, "--stop", "girl named")
        self.assertEqual(run.out, ", there was a little \n")

    def test_stop_texts_that_look_like_lists(self):
        answer = self.run_json("prompt", *GREEDY, "-n", "12", "--stop", "[the,there]", STORY)
        self.assertEqual(answer["tokens"], REFERENCE["short_story"]["greedy"][:12])

    def test_any_chunk_and_number_of_threads_for_the_same_answer(self):
        text = "Tim and Mia went to the park with a big red ball. " * 12
        answers = [
            self.run_json("prompt", text, "--seed", "5", "-n", "20", "--chunk", chunk, "--threads", threads)["tokens"]
            for chunk, threads in (("512", "1"), ("1", "2"), ("7", "3"), ("200", "2"))
        ]
        self.assertEqual(answers, [answers[0]] * 4)

    def test_a_model_file_by_option_or_environment(self):
        expected = REFERENCE["short_story"]["greedy"][:12]
        run = self.run_well("prompt", STORY, *GREEDY, "-n", "1", "-m", str(DEMO_MODEL))
        self.assertNotIn("built-in", run.err)
        self.assertEqual(self.greedy(STORY, "-m", str(DEMO_MODEL)), expected)
        self.assertEqual(self.greedy(STORY, env=environment(GEMMA_MODEL=str(DEMO_MODEL))), expected)
        missing = environment(GEMMA_MODEL="/nowhere.gemma")
        self.assert_fails(FAILED, "/nowhere.gemma", "prompt", STORY, env=missing)
        self.assertEqual(self.greedy(STORY, "--model", str(DEMO_MODEL), env=missing), expected)


class PromptRefuses(CommandLineTest):
    def test_numbers_out_of_range(self):
        bad = {
            "--threads": ["0", "-1", "two", "1e3", ""],
            "--max-tokens": ["-1", "1.5", "99999999999"],
            "--temperature": ["-0.1", "nan", "inf", "hot", ""],
            "--top-k": ["-1", "x"],
            "--top-p": ["0", "1.01", "-1", "nan"],
            "--min-p": ["-0.1", "1.1", "nan"],
            "--repeat-penalty": ["0", "-1", "nan"],
            "--seed": ["-1", "18446744073709551616", "x"],
            "--logprobs": ["-1", "x", "1001"],
            "--context": ["0", "-5", "x"],
            "--chunk": ["0", "-5"],
            "--window": ["0", "-5"],
            "--kv-type": ["q4", "f16", ""],
            "--device": ["gpu", "cuda:", "cuda:x", "cuda:-1", ""],
            "--stop": [""],
        }
        for option, values in bad.items():
            for value in values:
                with self.subTest(option=option, value=value):
                    self.assert_fails(USAGE, option, "prompt", STORY, option, value)

    def test_numbers_that_are_too_large_with_the_largest(self):
        self.assert_fails(USAGE, "from 0 to 2147483647", "prompt", STORY, "--max-tokens", "99999999999")
        self.assert_fails(USAGE, "from 0 to 18446744073709551615", "prompt", STORY, "--seed", "18446744073709551616")
        self.assert_fails(USAGE, "from 0 to 1000", "prompt", STORY, "--json", "--logprobs", "1001")

    def test_usage_that_makes_no_sense(self):
        self.assert_fails(USAGE, "--chat", "prompt", STORY, "--chat", "--raw")
        self.assert_fails(USAGE, "prompt once", "prompt", STORY, "--tokens", "2")
        self.assert_fails(USAGE, "prompt once", "prompt", STORY, "--file", "x")
        self.assert_fails(USAGE, "--json", "prompt", STORY, "--logprobs", "2")
        self.assert_fails(USAGE, "not a token id", "prompt", "--tokens", "2 x")
        self.assert_fails(USAGE, "no token ids", "prompt", "--tokens", " ")
        self.assert_fails(USAGE, "needs quotes", "prompt", "Once", "upon")
        self.assert_fails(USAGE, "no option '--tempreature'", "prompt", "Once", "--tempreature", "1")

    def test_prompts_that_cannot_be_used(self):
        self.assert_fails(FAILED, "not valid UTF-8: bad byte at offset 3", "prompt", stdin=b"abc\xff\xfe")
        self.assert_fails(FAILED, "not valid UTF-8", "prompt", b"\xc3")
        self.assert_fails(FAILED, "too long", "prompt", STORY, "--context", "5")
        self.assert_fails(FAILED, "too long", "prompt", "a b " * 2000)
        self.assert_fails(FAILED, "too long: it has at least", "prompt", stdin=b"a b " * (1 << 20))
        self.assert_fails(FAILED, "'/dev/zero': it has more than 64 MiB", "prompt", "--file", "/dev/zero")
        self.assert_fails(FAILED, "4096", "prompt", "--tokens", "2 4096")
        self.assert_fails(FAILED, "/nowhere/p.txt", "prompt", "--file", "/nowhere/p.txt")
        self.assert_fails(FAILED, "is a directory", "prompt", "--file", "/")

    def test_models_that_cannot_be_used(self):
        with tempfile.TemporaryDirectory() as folder:
            self.assert_fails(FAILED, folder, "prompt", STORY, "-m", folder)
            missing = os.path.join(folder, "missing.gemma")
            self.assert_fails(FAILED, missing, "prompt", STORY, "-m", missing)
            whole = DEMO_MODEL.read_bytes()
            for size in (0, 7, 1000, len(whole) // 2, len(whole) - 1):
                cut = pathlib.Path(folder) / f"cut-{size}.gemma"
                cut.write_bytes(whole[:size])
                self.assert_fails(FAILED, str(cut), "prompt", STORY, "-m", str(cut))

    def test_a_window_wider_than_the_models(self):
        self.assert_fails(FAILED, "128", "prompt", STORY, "--window", "129")

    def test_a_full_disk(self):
        with open("/dev/full", "wb") as full:
            run = Run("prompt", STORY, "-n", "3", "--quiet", stdout=full)
        self.assertEqual(run.code, FAILED)
        self.assertEqual(run.err, "gemma-run: cannot write to standard output: No space left on device\n")


class PromptEnds(CommandLineTest):
    def interrupt(self, process):
        """What the program still says after a Ctrl-C."""
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
        self.assertEqual((process.returncode, err), (INTERRUPTED, b""))
        return out.decode()

    def test_at_ctrl_c_with_what_was_said(self):
        process = start("prompt", STORY, "--quiet", *ENDLESS)
        self.assertEqual(process.stdout.read(1), b",")
        self.assertTrue(self.interrupt(process).endswith("\n"))

    def test_at_ctrl_c_with_a_json_document(self):
        process = start("prompt", STORY, "--quiet", *ENDLESS, "--json")
        time.sleep(3)  # nothing tells when it has begun
        answer = json.loads(self.interrupt(process))
        self.assertEqual(answer["finish_reason"], "interrupt")
        self.assertTrue(answer["text"].startswith(", there was"))

    def test_quietly_when_nobody_reads_on(self):
        process = start("prompt", STORY, "--quiet", *ENDLESS)
        self.assertEqual(process.stdout.read(1), b",")
        process.stdout.close()
        self.assertEqual(process.stderr.read(), b"")
        process.stderr.close()
        self.assertEqual(process.wait(timeout=60), -signal.SIGPIPE)

    def test_without_losing_text_when_streamed(self):
        process = start("prompt", STORY, "--quiet", *GREEDY, "-n", "40")
        pieces = []
        while piece := os.read(process.stdout.fileno(), 4096):
            pieces.append(piece)
        process.communicate(timeout=60)
        self.assertEqual(process.returncode, DONE)
        self.assertGreater(len(pieces), 1, "text comes as it is made")
        self.assertEqual(b"".join(pieces).decode(), self.run_well("prompt", STORY, "--quiet", *GREEDY, "-n", "40").out)


class PromptOnATerminal(CommandLineTest):
    def on_terminal(self, *arguments, **changes):
        """What both outputs show on one terminal."""
        leader, follower = pty.openpty()
        process = start("prompt", STORY, *GREEDY, "-n", "8", *arguments, stdout=follower, stderr=follower, env=environment(**changes))
        os.close(follower)
        shown = b""
        while True:
            try:
                data = os.read(leader, 4096)
            except OSError:  # how Linux says that the other side is closed
                break
            if not data:
                break
            shown += data
        os.close(leader)
        self.assertEqual(process.wait(timeout=60), DONE)
        return shown.decode()

    def test_the_prompt_stands_before_its_continuation(self):
        self.assertIn(STORY + ", there was", self.on_terminal(NO_COLOR="1"))
        self.assertNotIn(STORY, self.on_terminal("--quiet"))
        self.assertNotIn(STORY, self.on_terminal("--chat"))

    def test_notes_are_faint_unless_no_color_is_set(self):
        self.assertIn("\x1b[2m", self.on_terminal())
        self.assertNotIn("\x1b[2m", self.on_terminal(NO_COLOR="1"))
        self.assertIn("\x1b[2m", self.on_terminal(NO_COLOR=""))


if __name__ == "__main__":
    unittest.main()
