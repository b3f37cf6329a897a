import math
import pathlib
import tempfile
import unittest

from gemma_run import FAILED, REFERENCE, USAGE, CommandLineTest

TEXT = "Once upon a time, there was a little girl named Lily. She loved to play."


class Score(CommandLineTest):
    def ids(self, text=TEXT):
        return [2] + self.run_json("tokenize", text)["tokens"]

    def score_ids(self, ids, *arguments):
        return self.run_json("score", "--tokens", " ".join(map(str, ids)), *arguments)

    def test_gives_the_documented_fields(self):
        score = self.run_json("score", stdin=TEXT.encode())
        self.assertEqual(list(score), ["tokens", "nll", "perplexity", "logprobs"])
        self.assertEqual(len(score["logprobs"]), score["tokens"] - 1)
        self.assertAlmostEqual(score["nll"], -sum(score["logprobs"]), delta=1e-9 * score["nll"])
        self.assertAlmostEqual(score["perplexity"], math.exp(score["nll"] / len(score["logprobs"])), delta=1e-9 * score["perplexity"])
        self.assertTrue(all(logprob < 0 for logprob in score["logprobs"]))

    def test_agrees_with_the_log_probabilities_of_a_prompt(self):
        answer = self.run_json("prompt", "Once upon a time", "--temperature", "0", "-n", "10", "--logprobs", "1")
        ids = REFERENCE["short_story"]["ids"] + answer["tokens"]
        score = self.score_ids(ids)
        # Prompt rows and generated rows may sum in different orders: float32 rounding of logits of about 20.
        for scored, step in zip(score["logprobs"][-10:], answer["logprobs"]):
            self.assertAlmostEqual(scored, step["logprob"], delta=1e-4)

    def test_takes_the_same_text_from_every_source(self):
        expected = self.run_json("score", stdin=TEXT.encode())
        ids = self.ids()
        self.assertEqual(self.score_ids(ids), expected)
        with tempfile.TemporaryDirectory() as folder:
            file = pathlib.Path(folder) / "text"
            file.write_text(TEXT, encoding="utf-8")
            self.assertEqual(self.run_json("score", str(file)), expected)
            file.write_text(",\n".join(map(str, ids)), encoding="utf-8")
            self.assertEqual(self.run_json("score", "--tokens-file", str(file)), expected)

    def test_cuts_a_long_text_into_windows_that_each_begin_with_bos(self):
        ids = self.ids()[1:]
        parts = [ids[first:first + 7] for first in range(0, len(ids), 7)]
        expected = [self.score_ids([2] + part) for part in parts]
        score = self.run_json("score", "--context", "8", stdin=TEXT.encode())
        self.assertEqual(score["tokens"], len(ids) + len(parts))
        self.assertEqual(score["logprobs"], [logprob for part in expected for logprob in part["logprobs"]])

    def test_cuts_ids_into_windows_with_nothing_added(self):
        ids = self.ids()
        score = self.score_ids(ids, "--context", "8")
        parts = [self.score_ids(ids[first:first + 8]) for first in range(0, len(ids), 8)]
        self.assertEqual(score["tokens"], len(ids))
        self.assertEqual(score["logprobs"], [logprob for part in parts for logprob in part["logprobs"]])

    def test_does_not_depend_on_chunk_or_threads(self):
        text = (TEXT * 20).encode()
        scores = [
            self.run_json("score", "--chunk", chunk, "--threads", threads, stdin=text)
            for chunk, threads in (("512", "1"), ("7", "2"), ("64", "3"))
        ]
        self.assertEqual(scores, [scores[0]] * 3)

    def test_of_an_empty_text_is_that_of_bos_alone(self):
        self.assertEqual(self.run_json("score"), {"tokens": 1, "nll": 0.0, "perplexity": 1.0, "logprobs": []})

    def test_shows_every_token_and_the_sum_as_text(self):
        lines = self.run_well("score", stdin=TEXT.encode()).out.splitlines()
        pieces = self.run_json("tokenize", TEXT)["pieces"]
        self.assertEqual([line.split()[1] for line in lines[:-3]], pieces)
        self.assertEqual([line.split()[0] for line in lines[-3:]], ["tokens", "nll", "perplexity"])
        self.assertEqual(lines[-3].split()[1], str(len(pieces) + 1))

    def test_shows_the_right_tokens_when_there_are_several_windows(self):
        ids = self.ids()
        lines = self.run_well("score", "--tokens", " ".join(map(str, ids)), "--context", "8").out.splitlines()[:-3]
        pieces = [piece for i, piece in enumerate(["<bos>"] + self.run_json("tokenize", TEXT)["pieces"]) if i % 8]
        self.assertEqual([line.split()[1] for line in lines], pieces)

    def test_does_not_count_a_bos_in_the_text_twice(self):
        marked = self.run_json("score", "--parse-special", stdin=b"<bos>" + TEXT.encode())
        self.assertEqual(marked, self.run_json("score", stdin=TEXT.encode()))
        self.run_well("score", "--parse-special", stdin=b"<bos>" + TEXT.encode())

    def test_reports_statistics_when_asked(self):
        run = self.run_well("score", "--stats", "--quiet", stdin=TEXT.encode())
        self.assertIn("tokens/s", run.err)

    def test_refuses_what_it_cannot_score(self):
        self.assert_fails(USAGE, "text once", "score", "a.txt", "--tokens", "2")
        self.assert_fails(USAGE, "not a token id", "score", "--tokens", "-3")
        self.assert_fails(FAILED, "4096", "score", "--tokens", "2 4096")
        self.assert_fails(FAILED, "/nowhere", "score", "/nowhere")
        self.assert_fails(FAILED, "/nowhere", "score", "--tokens-file", "/nowhere")
        self.assert_fails(FAILED, "more than 1024 MiB", "score", "/dev/zero")
        self.assert_fails(FAILED, "offset 1", "score", stdin=b"a\xff")
        with tempfile.TemporaryDirectory() as folder:
            file = pathlib.Path(folder) / "ids"
            file.write_text("1 2 three", encoding="utf-8")
            self.assert_fails(FAILED, "offset 4", "score", "--tokens-file", str(file))


if __name__ == "__main__":
    unittest.main()
