import json
import os
import pathlib
import re
import signal
import stat
import tempfile
import termios

from gemma_run import DONE, FAILED, INTERRUPTED, USAGE, CommandLineTest, Run, environment, main, start
from terminal import (
    ALT_ENTER, BACKSPACE, CTRL_A, CTRL_C, CTRL_D, CTRL_E, ENTER, LEFT, UP, Terminal, pasted)

GREEDY = ("--temperature", "0")
PROMPT = ">>> "
HELLO, STORY, AND_THEN = "Hello!", "Tell me a story about a dog.", "What did the dog do then?"
# Longer than any test waits.
ENDLESS = ("--ignore-eos", "--context", "16384", "-n", "16000", *GREEDY)


class ChatTest(CommandLineTest):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)

    def file(self, name="chat.json"):
        return str(self.folder / name)

    def read(self, name="chat.json"):
        return json.loads((self.folder / name).read_text(encoding="utf-8"))

    def write(self, document, name="chat.json"):
        (self.folder / name).write_text(json.dumps(document), encoding="utf-8")

    def pipe(self, *lines, options=(), code=DONE):
        """A chat whose input is `lines`."""
        length = () if "-n" in options else ("-n", "20")
        run = Run("chat", *length, *options, stdin="".join(line + "\n" for line in lines).encode())
        self.assertEqual(run.code, code, run.err)
        return run

    def answers(self, *lines, options=("--seed", "5"), code=DONE):
        """The JSON documents of a piped chat, one for each message."""
        run = self.pipe(*lines, options=(*options, "--json"), code=code)
        return [json.loads(line) for line in run.out.splitlines()]

    def tokens(self, *lines, **settings):
        return [answer["tokens"] for answer in self.answers(*lines, **settings)]

    def messages(self, *lines, options=()):
        """The messages of the conversation that `lines` make."""
        self.pipe(*lines, "/save " + self.file(), options=("--quiet", *options))
        return self.read()["messages"]

    def said(self):
        """What the user said in the saved conversation."""
        return [message["content"] for message in self.read()["messages"] if message["role"] == "user"]


class PipedChat(ChatTest):
    def test_writes_nothing_but_the_answers(self):
        run = self.pipe(HELLO, STORY, options=("--seed", "5", "--quiet"))
        texts = [answer["text"] for answer in self.answers(HELLO, STORY)]
        self.assertEqual(run.out, "".join(text + "\n" for text in texts))
        self.assertEqual(run.err, "")

    def test_begins_as_prompt_does_with_the_same_seed(self):
        first = self.run_json("prompt", "--chat", STORY, "-n", "20", "--seed", "5")
        answer = self.answers(STORY)[0]
        self.assertEqual((answer["tokens"], answer["seed"]), (first["tokens"], 5))
        self.assertEqual(list(answer), [*first, "cached_tokens"])

    def test_goes_on_as_the_chat_template_says(self):
        first, second = self.answers(HELLO, STORY, options=GREEDY)
        text = (f"<start_of_turn>user\n{HELLO}<end_of_turn>\n<start_of_turn>model\n{first['text']}<end_of_turn>\n"
                f"<start_of_turn>user\n{STORY}<end_of_turn>\n<start_of_turn>model\n")
        whole = self.run_json("prompt", "--raw", "--parse-special", text, "-n", "20", *GREEDY)
        self.assertEqual((second["tokens"], second["prompt_tokens"]), (whole["tokens"], whole["prompt_tokens"]))

    def test_reads_only_what_is_new(self):
        first, second = self.answers(STORY, AND_THEN)
        self.assertEqual(first["cached_tokens"], 0)
        # The last token of an answer may not have been read yet.
        self.assertGreaterEqual(second["cached_tokens"], first["prompt_tokens"] + len(first["tokens"]) - 1)

    def test_takes_lines_as_they_come(self):
        lines = f"{HELLO}\r\n\r\n\n  \n{STORY}\\\n/save {self.file()}"
        run = Run("chat", "-n", "5", "--quiet", *GREEDY, stdin=lines.encode())
        self.assertEqual((run.code, run.err), (DONE, ""))
        self.assertEqual(self.said(), [HELLO, STORY + "\\"])

    def test_sends_a_text_that_begins_with_a_slash(self):
        self.assertEqual(self.messages("//usr is a folder")[0]["content"], "/usr is a folder")
        self.assertEqual(self.messages("/usr/bin is a folder")[0]["content"], "/usr/bin is a folder")

    def test_goes_on_after_a_line_that_is_not_text(self):
        run = Run("chat", "-n", "5", "--quiet", *GREEDY, stdin=b"Hello!\n\xff\xfe\nHello!\n")
        self.assertEqual((run.code, len(run.out.splitlines())), (FAILED, 2))
        self.assertIn("gemma-run: line 2: the text is not valid UTF-8", run.err)
        documents = Run("chat", "-n", "5", "--quiet", "--json", stdin=b"\xff\nHello!\n").out.splitlines()
        self.assertEqual([list(json.loads(document))[0] for document in documents], ["error", "text"])

    def test_goes_on_after_a_line_without_bounds(self):
        run = Run("chat", "-n", "5", "--quiet", *GREEDY, stdin=b"x" * (17 << 20) + b"\n" + HELLO.encode() + b"\n")
        self.assertEqual((run.code, len(run.out.splitlines())), (FAILED, 1))
        self.assertEqual(run.err, "gemma-run: line 1: the line is longer than 16 MiB\n")

    def test_says_which_commands_there_are(self):
        run = self.pipe("/help", options=("--quiet",))
        for command in ("/help", "/reset", "/undo", "/retry", "/system", "/save", "/load", "/set", "/stats", "/exit"):
            self.assertIn(command, run.err)
        self.assertEqual(run.out, "")
        self.assertLessEqual(max(map(len, run.err.splitlines())), 80)

    def test_tells_what_it_does_not_understand_in_one_line(self):
        for line, message in {
                "/dance": "there is no command '/dance'; /help lists them",
                "/": "there is no command '/'",
                "/usr is what?": "takes two: //...",
                "/undo 2": "/undo takes nothing behind it",
                "/undo": "nothing to take back",
                "/retry": "no message yet",
                "/save": "/save needs the name of a file",
                "/load": "/load needs the name of a file",
                "/load /nowhere/chat.json": "cannot open '/nowhere/chat.json'",
                "/save /nowhere/chat.json": "cannot write '/nowhere/chat.json'",
                "/set temperature -1": "temperature: '-1' is not a number of at least 0",
                "/set tempreature 1": "there is no setting 'tempreature'",
        }.items():
            with self.subTest(line=line):
                run = self.pipe(line, options=("--quiet",), code=FAILED)
                self.assertIn("gemma-run: line 1: ", run.err)
                self.assertIn(message, run.err)
                self.assertEqual((run.out, run.err.count("\n")), ("", 1))

    def test_ends_at_exit(self):
        self.assertEqual(len(self.answers(HELLO, "/exit", STORY)), 1)

    def test_stops_at_ctrl_c(self):
        process = start("chat", "--quiet", *ENDLESS, stdin=self.open_pipe(b"Hello!\nHello!\n"))
        process.stdout.read(1)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
        self.assertEqual((process.returncode, err), (INTERRUPTED, b""))
        self.assertTrue(out.endswith(b"\n"))

    def open_pipe(self, data):
        reader, writer = os.pipe()
        os.write(writer, data)
        os.close(writer)
        self.addCleanup(os.close, reader)
        return reader

    def test_stops_where_nothing_can_be_written(self):
        with open("/dev/full", "wb") as full:
            run = Run("chat", "-n", "3", "--quiet", stdin=b"Hello!\nHello!\n", stdout=full)
        self.assertEqual(run.code, FAILED)
        self.assertEqual(run.err, "gemma-run: cannot write to standard output: No space left on device\n")

    def test_refuses_usage_that_makes_no_sense(self):
        self.assert_fails(USAGE, "--json", "chat", "--logprobs", "2")
        self.assert_fails(USAGE, "no option '--raw'", "chat", "--raw")
        self.assert_fails(USAGE, "--temperature", "chat", "--temperature", "-1")

    def test_tells_that_a_model_is_not_made_for_conversation(self):
        self.assertIn("not made for conversation", self.pipe().err)

    def test_shows_statistics_when_asked(self):
        always = self.pipe(HELLO, options=("-n", "5", "--stats", "--quiet")).err
        once = self.pipe(HELLO, "/stats", options=("-n", "5", "--quiet")).err
        for shown in (always, once):
            for word in ("prompt", "answer", "tokens/s", "of 1024 positions, in 1 turn", "seed", "memory"):
                self.assertIn(word, shown)

    def test_counts_no_more_positions_than_the_context_has(self):
        full = self.pipe(STORY, "/stats", options=("--quiet", "--context", "40", "--ignore-eos", *GREEDY)).err
        self.assertIn("40 of 40 positions, in 1 turn", full)
        answer, = self.answers(STORY, options=("-n", "5", *GREEDY))
        shown = self.pipe(STORY, "/stats", options=("--quiet", "-n", "5", *GREEDY)).err
        end_of_turn = 2  # and a line break
        said = answer["prompt_tokens"] + len(answer["tokens"]) + end_of_turn
        self.assertIn(f"context {said} of 1024 positions", shown)

    def test_counts_control_tokens_as_they_are_read(self):
        text = "<end_of_turn>" * 12
        options = ("--context", "60", "-n", "3", *GREEDY)
        self.assertIn("too long", self.pipe(text, options=("--quiet", *options), code=FAILED).err)
        self.answers(text, options=("--parse-special", *options))
        self.assertIn("more from the cache", self.pipe(HELLO, HELLO, "/stats", options=("-n", "5", "--quiet")).err)


class AConversation(ChatTest):
    def test_is_the_same_with_the_same_seed(self):
        first = self.tokens(STORY, AND_THEN, options=("--seed", "7"))
        self.assertEqual(self.tokens(STORY, AND_THEN, options=("--seed", "7")), first)
        self.assertNotEqual(self.tokens(STORY, AND_THEN, options=("--seed", "8")), first)

    def test_draws_its_turns_differently(self):
        seeds = [answer["seed"] for answer in self.answers(STORY, STORY, STORY)]
        self.assertEqual((len(set(seeds)), seeds[0]), (3, 5))

    def test_tells_a_seed_that_was_drawn(self):
        run = self.pipe(STORY, AND_THEN)
        seed = run.err.split("--seed ")[1].split(".")[0]
        self.assertEqual(self.pipe(STORY, AND_THEN, options=("--seed", seed)).out, run.out)
        for options in (("--seed", "1"), ("--quiet",), GREEDY):
            self.assertNotIn("--seed", self.pipe(STORY, options=("-n", "5", *options)).err)

    def test_is_taken_back_a_turn(self):
        first, _, again = self.answers(STORY, HELLO, "/undo", AND_THEN)
        _, straight = self.answers(STORY, AND_THEN)
        self.assertEqual(again["tokens"], straight["tokens"])
        self.assertGreaterEqual(again["cached_tokens"], first["prompt_tokens"] + len(first["tokens"]) - 1)

    def test_is_taken_back_to_its_beginning(self):
        _, _, again = self.tokens(STORY, HELLO, "/undo", "/undo", STORY)
        self.assertEqual(again, self.tokens(STORY)[0])

    def test_is_answered_once_more_and_differently(self):
        first, second, again, third = self.answers(STORY, AND_THEN, "/retry", "/retry")
        self.assertEqual(len({tuple(answer["tokens"]) for answer in (second, again, third)}), 3)
        for answer in (again, third):
            self.assertEqual(answer["prompt_tokens"], second["prompt_tokens"])
            self.assertGreaterEqual(answer["cached_tokens"], first["prompt_tokens"] + len(first["tokens"]) - 1)

    def test_goes_on_from_the_answer_that_was_given_last(self):
        self.pipe(STORY, "/retry", "/save " + self.file(), options=("--seed", "5", "--quiet"))
        again = self.tokens(STORY, "/retry")[1]
        self.assertEqual([message.get("tokens") for message in self.read()["messages"]], [None, again])

    def test_begins_anew(self):
        for begin in ((HELLO, STORY, "/reset"), ()):
            with self.subTest(begin=begin):
                self.assertEqual(self.tokens(*begin, STORY)[-1], self.tokens(STORY)[0])

    def test_goes_on_from_a_file_as_if_it_had_never_been_interrupted(self):
        whole = self.tokens(STORY, HELLO, AND_THEN)
        self.tokens(STORY, HELLO, "/save " + self.file())
        self.assertEqual(self.tokens("/load " + self.file(), AND_THEN), whole[2:])
        document = self.read()
        self.assertEqual(list(document), ["format", "model", "system", "dropped", "messages"])
        self.assertEqual([message["role"] for message in document["messages"]], ["user", "model"] * 2)
        self.assertEqual([document["messages"][at]["tokens"] for at in (1, 3)], whole[:2])

    def test_takes_the_place_of_another_when_loaded(self):
        self.tokens(STORY, "/save " + self.file())
        loaded = self.tokens(HELLO, HELLO, "/load " + self.file(), AND_THEN)
        self.assertEqual(loaded[-1], self.tokens(STORY, AND_THEN)[-1])

    def test_stays_as_it_is_when_another_cannot_be_loaded(self):
        self.write({"format": "gemma-run chat 1", "messages": [{"role": "user", "content": "x"}]})
        answers = self.answers(STORY, "/load " + self.file(), AND_THEN, code=FAILED)
        self.assertIn("ends with an answer", answers[1]["error"])
        self.assertEqual(answers[2]["tokens"], self.tokens(STORY, AND_THEN)[-1])

    def test_finds_its_file_in_the_home_folder(self):
        lines = b"/save ~/chat.json\n/load ~/chat.json\n"
        run = Run("chat", "--quiet", stdin=lines, env=environment(HOME=str(self.folder)))
        self.assertEqual((run.code, run.err), (DONE, ""))
        self.assertEqual(self.read()["messages"], [])

    def test_has_a_system_text_before_the_first_message(self):
        text = "Speak like a cat."
        self.pipe(HELLO, "/save " + self.file(), options=("--system", text, "--quiet", *GREEDY))
        self.assertEqual((self.read()["system"], self.said()), (text, [HELLO]))
        joined = self.run_json("prompt", "--chat", f"{text}\n\n{HELLO}", "-n", "20", *GREEDY)["tokens"]
        self.assertNotEqual(joined, self.tokens(HELLO, options=GREEDY)[0])
        self.assertEqual(self.tokens(HELLO, options=("--system", text, *GREEDY))[0], joined)
        self.assertEqual(self.tokens(f"/system {text}", HELLO, options=GREEDY)[0], joined)
        self.assertEqual(
            self.tokens("/system -", HELLO, options=("--system", text, *GREEDY)), self.tokens(HELLO, options=GREEDY))
        self.assertIn(text, self.pipe("/system", options=("--system", text, "--quiet")).err)

    def test_is_made_by_the_settings(self):
        greedy = self.tokens(STORY, options=GREEDY)
        self.assertEqual(self.tokens("/set temperature 0", STORY), greedy)
        self.assertEqual(self.tokens("/set temperature", STORY, options=GREEDY + ("--seed", "5")), self.tokens(STORY))
        self.assertEqual(len(self.tokens("/set max-tokens 3", STORY)[0]), 3)
        self.assertEqual(self.tokens("/set seed 9", STORY), self.tokens(STORY, options=("--seed", "9")))
        shown = self.pipe("/set", options=("--top-k", "7", "--quiet")).err
        self.assertRegex(shown, r"top-k +7\n")
        self.assertRegex(shown, r"seed +\d+\n")

    def test_leaves_out_the_stop_text_that_ended_an_answer(self):
        messages = self.messages(STORY, options=(*GREEDY, "--stop", "a time"))
        self.assertEqual(messages[1], {"role": "model", "content": "Once upon "})

    def test_that_outgrows_the_context_drops_its_oldest_turns(self):
        questions = [f"{number}. {STORY}" for number in range(1, 13)]
        options = ("--context", "200", "--system", "Be kind.", "--ignore-eos", *GREEDY)
        run = self.pipe(*questions, "/save " + self.file(), options=options)
        notes = re.findall(r"outgrown the context: its oldest (.*) forgotten", run.err)
        self.assertGreaterEqual(len(notes), 1)
        self.assertLess(len(notes), 6, "not at every turn")
        document = self.read()
        self.assertEqual(document["system"], "Be kind.")
        self.assertEqual(self.said(), questions[document["dropped"] :])
        self.assertGreater(document["dropped"], 3)
        # It goes on just as it does from a file.
        goes_on = self.tokens("/load " + self.file(), HELLO, options=options)
        self.assertEqual(self.tokens(*questions, HELLO, options=options)[-1], goes_on[0])

    def test_refuses_a_message_that_does_not_fit_and_goes_on(self):
        answers = self.answers(STORY, "word " * 300, AND_THEN, options=("--context", "150", *GREEDY), code=FAILED)
        self.assertRegex(answers[1]["error"], r"too long: it takes \d+ tokens of a context of 150")
        self.assertEqual(answers[2]["tokens"], self.tokens(STORY, AND_THEN, options=("--context", "150", *GREEDY))[1])

    def test_says_why_an_answer_ends_early(self):
        endless = ("--ignore-eos", *GREEDY)
        self.assertIn("max-tokens 5", self.pipe(STORY, options=("-n", "5", *endless)).err)
        self.assertIn("context is full", self.pipe(STORY, options=("--context", "40", *endless)).err)
        self.assertNotIn("ends here", self.pipe(HELLO, options=GREEDY).err)


class TypedChat(ChatTest):
    def chat(self, *options, **changes):
        """A chat on a terminal that is ready for the first message."""
        terminal = Terminal("chat", *options, **{"LANG": "C.UTF-8", "XDG_STATE_HOME": str(self.folder), **changes})
        self.addCleanup(terminal.__exit__)
        terminal.wait_for_prompt()
        return terminal

    def save_and_leave(self, terminal):
        terminal.type(f"/save {self.file()}", ENTER)
        terminal.wait_for_prompt()
        terminal.type(CTRL_D)
        self.assertEqual(terminal.end(), DONE)

    def type_message(self, terminal, *keys):
        terminal.type(*keys, ENTER)
        terminal.wait_for_prompt()

    def assert_types(self, expected, *keys, **changes):
        """The keys make up the message `expected`."""
        terminal = self.chat("-n", "3", **changes)
        self.type_message(terminal, *keys)
        self.save_and_leave(terminal)
        self.assertEqual(self.said(), [expected])
        return terminal

    def test_answers_what_is_typed_until_ctrl_d(self):
        terminal = self.chat("-n", "20", "--seed", "5", NO_COLOR="1")
        self.type_message(terminal, STORY)
        self.type_message(terminal, AND_THEN)
        terminal.type(CTRL_D)
        self.assertEqual(terminal.end(), DONE)
        shown = " ".join("\n".join(terminal.screen()).split())
        for question, answer in zip((STORY, AND_THEN), self.answers(STORY, AND_THEN)):
            self.assertIn(f"{PROMPT}{question} {' '.join(answer['text'].split())}", shown)
        self.assertIn("/help lists the commands", shown)
        self.assertIn("built-in demo model", shown)

    def test_says_only_the_answer_when_quiet(self):
        terminal = self.chat("-n", "5", "--quiet", *GREEDY)
        self.type_message(terminal, STORY)
        answer = self.answers(STORY, options=("-n", "5", *GREEDY))[0]["text"]
        self.assertEqual(terminal.screen(), [PROMPT + STORY, answer, PROMPT.rstrip()])

    def test_lets_lines_be_edited(self):
        self.assert_types("Hello, you!", "ello, me", BACKSPACE * 2, "you!", CTRL_A, "H", CTRL_E)
        self.assert_types("Grüße, 東京!", "Grüße,京", LEFT, " 東西", BACKSPACE, CTRL_E, "!")
        self.assert_types("東", "東京", BACKSPACE)

    def test_takes_messages_of_several_lines(self):
        self.assert_types("one\ntwo\nthree", "one\\", ENTER, "two\\", ENTER, "three")
        self.assert_types("one\ntwo\\\n\nthree", '"""one', ENTER, "two\\", ENTER, ENTER, 'three"""')
        self.assert_types("one\ntwo", "one", ALT_ENTER, "two")

    def test_takes_a_pasted_text_as_one_message(self):
        self.assert_types("> one\n\ttwo\n\nthree, edited", pasted("one\n\ttwo\n\nthree"), ", edited", CTRL_A, "> ")
        self.assert_types("no escapes[31m here", pasted("no\x07 escapes\x1b[31m here"))
        long = "\n".join(f"{number}: a line that does not fit into twenty columns" for number in range(100))
        terminal = self.chat("-n", "3", "--context", "8192", columns=20, rows=10)
        self.type_message(terminal, pasted(long))
        self.save_and_leave(terminal)
        self.assertEqual(self.said(), [long])

    def test_has_a_history_across_runs(self):
        first = self.chat("-n", "3")
        for message in ("one", "two\\\nthree", "/stats"):
            self.type_message(first, message.replace("\n", ENTER))
        first.type(CTRL_D)
        self.assertEqual(first.end(), DONE)
        history = self.folder / "gemma-run" / "chat_history"
        self.assertEqual(stat.S_IMODE(history.stat().st_mode), 0o600)
        self.assert_types("one", UP, UP, UP)
        self.assert_types("two\nthree", UP, UP, UP, UP)

    def test_does_without_a_history_that_cannot_be_kept(self):
        self.assert_types(HELLO, HELLO, XDG_STATE_HOME="/proc/nowhere")

    def test_works_in_20_columns(self):
        message = "Tell me a story about a big 東京 and a small dog."
        terminal = self.chat("-n", "3", "--quiet", *GREEDY, columns=20, rows=8)
        self.type_message(terminal, message.replace("small", "smal"), LEFT * 5, "l")
        answer = self.answers(message, options=("-n", "3", *GREEDY))[0]["text"]
        self.assertEqual(terminal.screen()[:4], [">>> Tell me a story", "about a big 東京 and", " a small dog.", answer])
        self.save_and_leave(terminal)
        self.assertEqual(self.said(), [message])

    def test_reads_utf_8_whatever_the_locale(self):
        for locale in ("C", "POSIX", "nowhere.ISO-8859-1"):
            with self.subTest(locale=locale):
                self.assert_types("Grüße, 東!", "Grüße, 東京", BACKSPACE, "!", LANG=locale, LC_ALL=locale)

    def test_sends_no_escape_sequences_to_a_terminal_without_them(self):
        terminal = self.assert_types("Help!", "Hello", BACKSPACE * 2, "p!", TERM="dumb")
        self.assertNotIn("\x1b", terminal.output)
        self.assert_types(HELLO, HELLO, TERM="no-such-terminal")

    def test_asks_for_pastes_to_be_marked_only_while_somebody_types(self):
        terminal = self.chat("-n", "3")
        self.type_message(terminal, HELLO)
        terminal.type(CTRL_D)
        terminal.end()
        marks = re.findall(r"\x1b\[\?2004([hl])", terminal.output)
        self.assertEqual("".join(marks), "hl" * 2)

    def test_keeps_what_was_said_when_ctrl_c_stops_an_answer(self):
        terminal = self.chat(*ENDLESS)
        terminal.type(STORY, ENTER)
        terminal.wait_for("there was")
        terminal.type(CTRL_C)
        terminal.wait_for_prompt()
        self.type_message(terminal, "/set max-tokens 5")
        self.type_message(terminal, AND_THEN)
        self.save_and_leave(terminal)
        answer = self.read()["messages"][1]
        self.assertIn("there was", answer["content"])
        length = str(len(answer["tokens"]))
        whole = self.run_json("prompt", "--chat", STORY, *ENDLESS[:3], "-n", length, *GREEDY)
        self.assertEqual((answer["tokens"], answer["content"]), (whole["tokens"], whole["text"]))
        self.assertEqual(self.said(), [STORY, AND_THEN])

    def test_leaves_a_message_out_whose_reading_ctrl_c_stops(self):
        terminal = self.chat("--chunk", "1", "--threads", "1", *ENDLESS)
        terminal.type(pasted("A long story. " * 3000), ENTER)
        terminal.wait_for("Reading ")
        terminal.type(CTRL_C)
        terminal.wait_for("Stopped before the first word")
        terminal.wait_for_prompt()
        self.save_and_leave(terminal)
        self.assertEqual(self.read()["messages"], [])

    def test_takes_a_line_back_at_ctrl_c_and_leaves_at_the_second_on_an_empty_one(self):
        terminal = self.chat()
        for line in ("nonsense", "more\\" + ENTER + "nonsense"):
            terminal.type(line)
            terminal.wait_for("nonsense")
            terminal.type(CTRL_C)
            terminal.wait_for_prompt()
        self.assertNotIn("once more", terminal.output)
        terminal.type(CTRL_C)
        terminal.wait_for("Ctrl-C once more leaves")
        terminal.wait_for_prompt()
        self.type_message(terminal, "/stats")
        terminal.type(CTRL_C)
        terminal.wait_for("Ctrl-C once more leaves")
        terminal.wait_for_prompt()
        terminal.type(CTRL_C)
        self.assertEqual(terminal.end(), INTERRUPTED)

    def test_leaves_the_terminal_as_it_was_when_it_is_ended(self):
        terminal = self.chat()
        self.assertFalse(terminal.modes() & termios.ICANON)
        terminal.type("half a li")
        terminal.wait_for("half a li")
        terminal.signal(signal.SIGTERM)
        self.assertEqual(terminal.end(), -signal.SIGTERM)
        self.assertTrue(terminal.modes() & termios.ICANON)
        self.assertTrue(terminal.modes() & termios.ECHO)

    def test_shows_escape_sequences_instead_of_obeying_them(self):
        self.write({"format": "gemma-run chat 1", "system": "\x1b[31mred\x07",
                    "messages": [{"role": "user", "content": "\x1b]0;title\x07"}, {"role": "model", "content": "x"}]})
        terminal = self.chat(NO_COLOR="1")
        self.type_message(terminal, f"/load {self.file()}")
        self.type_message(terminal, "/system")
        self.type_message(terminal, "/undo")
        self.assertIn("'\\x1B]0;title\\x07'", terminal.output)
        self.assertIn("\\x1B[31mred\\x07", terminal.output)
        self.assertNotIn("\x07", terminal.output)
        self.assertNotIn("\x1b[31m", terminal.output)

    def test_shows_notes_in_plain_text_when_asked(self):
        self.assertIn("\x1b[2m", self.chat().output)
        self.assertNotIn("\x1b[2m", self.chat(NO_COLOR="1").output)


if __name__ == "__main__":
    main()
