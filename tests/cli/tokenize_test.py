import pathlib
import tempfile
import unittest

from gemma_run import FAILED, REFERENCE, USAGE, CommandLineTest


class Tokenize(CommandLineTest):
    def test_gives_the_ids_that_transformers_gives(self):
        for name, prompt in REFERENCE.items():
            if prompt["text"] is None:
                continue
            options = ["--parse-special"] if prompt["text_is"].startswith("chat") else []
            with self.subTest(prompt=name):
                document = self.run_json("tokenize", *options, stdin=prompt["text"].encode())
                self.assertEqual(list(document), ["tokens", "pieces"])
                self.assertEqual([2] + document["tokens"], prompt["ids"])

    def test_decodes_to_the_same_text(self):
        for name in ("unicode_bytes", "spaces_newlines"):
            ids = " ".join(map(str, REFERENCE[name]["ids"]))
            self.assertEqual(self.run_json("tokenize", "--decode", ids), {"text": REFERENCE[name]["text"]})
            self.assertEqual(self.run_well("tokenize", "--decode", stdin=ids.encode()).out, REFERENCE[name]["text"] + "\n")

    def test_prints_an_id_and_a_piece_on_every_line(self):
        run = self.run_well("tokenize", "Once upon\n\ta time")
        self.assertEqual([line.split() for line in run.out.splitlines()],
                         [["506", "Once"], ["483", "\u2581upon"], ["7", "\\n"], ["23", "<0x09>"], ["3980", "a"], ["437", "\u2581time"]])

    def test_replaces_bytes_that_are_no_text(self):
        euro = self.run_json("tokenize", "\u20ac")["tokens"]
        self.assertEqual(self.run_json("tokenize", "--decode", str(euro[-1]))["text"], "\ufffd")

    def test_keeps_control_tokens_text_unless_told_to_parse_them(self):
        text = "<start_of_turn>"
        self.assertEqual(self.run_json("tokenize", "--parse-special", text)["tokens"], [5])
        self.assertFalse(set(self.run_json("tokenize", text)["tokens"]) & set(range(7)))

    def test_reads_a_file_as_it_is(self):
        with tempfile.TemporaryDirectory() as folder:
            file = pathlib.Path(folder) / "text"
            file.write_text("Once\n", encoding="utf-8")
            self.assertEqual(self.run_json("tokenize", "--file", str(file))["tokens"], [506, 7])

    def test_of_nothing_is_nothing(self):
        self.assertEqual(self.run_json("tokenize", ""), {"tokens": [], "pieces": []})
        self.assertEqual(self.run_well("tokenize", "").out, "")

    def test_refuses_what_it_cannot_use(self):
        self.assert_fails(FAILED, "offset 1", "tokenize", b"a\xff")
        self.assert_fails(FAILED, "4096", "tokenize", "--decode", "4096")
        self.assert_fails(USAGE, "not a token id", "tokenize", "--decode", "Once")
        self.assert_fails(USAGE, "text once", "tokenize", "a", "--file", "b")


if __name__ == "__main__":
    unittest.main()
