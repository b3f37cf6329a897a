import json
import os
import pathlib
import pty
import random
import resource
import shutil
import signal
import subprocess
import tempfile
import time

from gemma_run import (
    DEMO_MODEL, DEVICE, DONE, FAILED, INTERRUPTED, USAGE, CommandLineTest, command, environment, main, start)

GREEDY = ("--temperature", "0")
PROMPTS = ("Once upon a time", "The dog was", "A little girl named Lily", "One day, Tim", "The cat sat on")
COUNT = 24  # of prompts that a run is interrupted at
# A run that is to be caught on its way must take a while: a GPU gets longer answers, one after the other.
LENGTHENED = 1 if DEVICE == "cpu" else 40
ON_ITS_WAY = () if DEVICE == "cpu" else ("--parallel", "1")
LAUNCHERS = ("SLURM_", "OMPI_", "PMI_", "PMIX_", "MPI_")


def clean_environment(**changes):
    """Without what a launcher of parallel programs may have put there."""
    alone = {name: value for name, value in environment().items() if not name.startswith(LAUNCHERS)}
    return {**alone, **changes}


def mixed_lines(count):
    """Prompts and answers of many lengths, the same every time."""
    chance = random.Random(7)
    words = "the big dog and a small cat went to see their friend in the park because it was fun".split()
    return [
        json.dumps({"id": f"line-{i}", "prompt": " ".join(chance.choices(words, k=chance.randint(1, 30))),
                    "max_tokens": LENGTHENED * chance.randint(1, 14), "ignore_eos": True})
        for i in range(count)
    ]


class BatchTest(CommandLineTest):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)
        self.output = self.folder / "out.jsonl"
        self.partial = self.folder / "out.jsonl.partial"

    def write(self, lines, name="in.jsonl"):
        file = self.folder / name
        text = lines if isinstance(lines, bytes) else "".join(line + "\n" for line in lines).encode()
        file.write_bytes(text)
        return str(file)

    def command(self, file, *arguments, output=None):
        return ("batch", file, "-o", str(output or self.output), *arguments)

    def batch(self, file, *arguments, output=None, env=None):
        """The lines of the output of a run that goes well."""
        run = self.run_well(*self.command(file, "--quiet", *arguments, output=output), env=env or clean_environment())
        self.assertEqual((run.out, run.err), ("", ""))
        return [json.loads(line) for line in (output or self.output).read_text(encoding="utf-8").splitlines()]

    def batch_of(self, lines, *arguments, name="in.jsonl"):
        return self.batch(self.write(lines, name), "--overwrite", *arguments)

    def expected_bytes(self, file, *arguments):
        """The output of an uninterrupted run."""
        other = self.folder / "whole.jsonl"
        self.batch(file, *arguments, output=other)
        return other.read_bytes()

    def assert_refuses(self, code, message, *arguments, env=None):
        self.assert_fails(code, message, *arguments, env=env or clean_environment())

    def wait_for_results(self, process, count):
        """Until so many results are in the partial file."""
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and process.poll() is None:
            if self.partial.exists() and self.partial.read_bytes().count(b"\n") > count:
                return
            time.sleep(0.01)
        self.fail("no results came: " + (process.stderr.read().decode() if process.stderr else ""))


class BatchGives(BatchTest):
    def test_a_line_for_every_prompt_with_the_documented_members(self):
        results = self.batch_of(PROMPTS, *GREEDY, "-n", "9", name="in.txt")
        self.assertEqual([result["index"] for result in results], list(range(5)))
        for prompt, result in zip(PROMPTS, results):
            self.assertEqual(list(result), ["index", "id", "text", "tokens", "finish_reason"])
            alone = self.run_json("prompt", prompt, *GREEDY, "-n", "9")
            self.assertEqual((result["id"], result["text"], result["tokens"], result["finish_reason"]),
                             (None, alone["text"], len(alone["tokens"]), alone["finish_reason"]))

    def test_what_each_lines_own_options_ask_for(self):
        lines = [
            {"id": "short", "prompt": PROMPTS[0], "max_tokens": 3},
            {"id": 2, "prompt": PROMPTS[0], "seed": 11, "temperature": 1, "top_k": 40, "top_p": 0.9},
            {"prompt": PROMPTS[0], "stop": ["girl", "xyz"]},
            {"prompt": "Hello!", "chat": True, "ignore_eos": True, "max_tokens": 5},
            {"messages": [{"role": "user", "content": "Hello!"}], "ignore_eos": True, "max_tokens": 5},
            {"prompt": [2, 506, 483, 272, 437], "repeat_penalty": 1.3, "min_p": 0.1},
            {"prompt": "", "max_tokens": 0},
        ]
        results = self.batch_of(map(json.dumps, lines), *GREEDY, "-n", "12")
        self.assertEqual([result["id"] for result in results], ["short", 2] + [None] * 5)
        alone = [
            self.run_json("prompt", PROMPTS[0], *GREEDY, "-n", "3"),
            self.run_json("prompt", PROMPTS[0], "--seed", "11", "--temperature", "1", "--top-k", "40", "--top-p", "0.9", "-n", "12"),
            self.run_json("prompt", PROMPTS[0], *GREEDY, "-n", "12", "--stop", "girl"),
            self.run_json("prompt", "Hello!", "--chat", *GREEDY, "--ignore-eos", "-n", "5"),
            self.run_json("prompt", "Hello!", "--chat", *GREEDY, "--ignore-eos", "-n", "5"),
            self.run_json("prompt", PROMPTS[0], *GREEDY, "-n", "12", "--repeat-penalty", "1.3", "--min-p", "0.1"),
            self.run_json("prompt", "", "-n", "0"),
        ]
        for result, expected in zip(results, alone):
            self.assertEqual((result["text"], result["finish_reason"]), (expected["text"], expected["finish_reason"]))

    def test_log_probabilities_to_lines_that_ask_for_them(self):
        with_some, without = self.batch_of(
            [json.dumps({"prompt": PROMPTS[0], "logprobs": 2}), json.dumps({"prompt": PROMPTS[0]})], *GREEDY, "-n", "3")
        alone = self.run_json("prompt", PROMPTS[0], *GREEDY, "-n", "3", "--logprobs", "2")
        self.assertEqual(with_some["logprobs"], alone["logprobs"])
        self.assertNotIn("logprobs", without)

    def test_answers_to_openais_batch_lines(self):
        user = [{"role": "user", "content": [{"type": "text", "text": "Hello!"}]}]
        lines = [
            {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions",
             "body": {"model": "gpt", "messages": user, "max_completion_tokens": 5, "temperature": 0}},
            {"custom_id": "b", "method": "POST", "url": "/v1/completions",
             "body": {"model": "gpt", "prompt": PROMPTS[0], "max_tokens": 5, "temperature": 0, "user": "me"}},
            {"custom_id": "c", "method": "POST", "url": "/v1/chat/completions", "body": {"messages": user, "n": 3}},
        ]
        first, second, third = self.batch_of(map(json.dumps, lines), "--chat")
        self.assertEqual(first["text"], self.run_json("prompt", "Hello!", "--chat", *GREEDY, "-n", "5")["text"])
        self.assertEqual(second["text"], self.run_json("prompt", PROMPTS[0], "--raw", *GREEDY, "-n", "5")["text"])
        self.assertEqual([first["id"], second["id"], third["id"]], ["a", "b", "c"])
        self.assertIn("'n'", third["error"])

    def test_an_error_to_a_bad_line_and_answers_to_all_others(self):
        lines = [
            b'{"prompt": "Once"}',
            b'{"prompt": "Once"',
            b'{"prompt": "\xff"}',
            b'{"id": "x", "prompt": "Once", "temprature": 1}',
            json.dumps({"prompt": "a b " * 2000}).encode(),
            b'{"prompt": "Once", "top_p": 7}',
            b'{"messages": [{"role": "pope", "content": "Once"}]}',
            b'{"prompt": [2, 4096]}',
            b'{"prompt": "' + b"x" * (17 << 20) + b'"}',
            b"[" * 100000,
            b'{"prompt": "Once"}',
        ]
        run = self.run_well(*self.command(self.write(b"\n".join(lines)), "-n", "3"), env=clean_environment())
        self.assertIn("2 of 11 prompts answered, 9 failed", run.err)
        results = [json.loads(line) for line in self.output.read_text().splitlines()]
        self.assertEqual([result["index"] for result in results], list(range(11)))
        messages = ["", "not valid JSON", "not valid UTF-8", "'temprature'", "too long", "top-p", "pope", "4096",
                    "longer than 16 MiB", "nested too deeply", ""]
        for result, message in zip(results, messages):
            if message:
                self.assertEqual(list(result), ["index", "id", "error"])
                self.assertIn(message, result["error"])
            else:
                self.assertIn("text", result)
        self.assertEqual(results[3]["id"], "x")

    def test_the_same_whoever_shares_the_work_and_however_it_is_cut(self):
        file = self.write(mixed_lines(12))
        expected = self.expected_bytes(file, "--seed", "5")
        for arguments in (("--parallel", "1"), ("--parallel", "3", "--chunk", "5"), ("--threads", "1", "--chunk", "100")):
            self.batch(file, "--seed", "5", "--overwrite", *arguments)
            self.assertEqual(self.output.read_bytes(), expected, arguments)

    def test_different_answers_to_the_same_prompt_unless_the_lines_have_one_seed(self):
        lines = [json.dumps({"prompt": PROMPTS[0]})] * 4
        self.assertEqual(len({result["text"] for result in self.batch_of(lines, "-n", "30", "--seed", "1")}), 4)
        lines = [json.dumps({"prompt": PROMPTS[0], "seed": 3})] * 4
        self.assertEqual(len({result["text"] for result in self.batch_of(lines, "-n", "30")}), 1)

    def test_a_drawn_seed_to_be_told(self):
        run = self.run_well(*self.command(self.write(PROMPTS, "in.txt"), "-n", "20"), env=clean_environment())
        seed = run.err.split("--seed ")[1].split(".")[0]
        first = self.output.read_bytes()
        self.batch_of(PROMPTS, "-n", "20", "--seed", seed, name="in.txt")
        self.assertEqual(self.output.read_bytes(), first)

    def test_a_summary_as_json(self):
        run = self.run_well(*self.command(self.write(["{}", '{"prompt": "Once"}']), "-n", "3", "--seed", "9", "--json", "--ignore-eos"),
                            env=clean_environment())
        summary = json.loads(run.out)
        self.assertEqual({name: summary[name] for name in ("output", "is_finished", "prompts", "done", "failed", "seed", "tokens")},
                         {"output": str(self.output), "is_finished": True, "prompts": 2, "done": 2, "failed": 1, "seed": 9, "tokens": 3})

    def test_a_bar_on_a_terminal(self):
        leader, follower = pty.openpty()
        process = start(*self.command(self.write(mixed_lines(8)), "--seed", "1"), stderr=follower, env=clean_environment())
        os.close(follower)
        shown = b""
        try:
            while data := os.read(leader, 4096):
                shown += data
        except OSError:  # how Linux says that the other side is closed
            pass
        os.close(leader)
        process.communicate(timeout=60)
        self.assertEqual(process.returncode, DONE)
        self.assertRegex(shown.decode(), r"\d/8 \[.*\] [0-9.]+ tokens/s")


class BatchReads(BatchTest):
    def texts(self, data, name="in.txt"):
        return [result.get("text") for result in self.batch_of(data, *GREEDY, "-n", "4", name=name)]

    def test_every_kind_of_line_break_and_none_at_the_end(self):
        expected = self.texts(b"Once\nThe dog\n")
        self.assertEqual(self.texts(b"Once\r\nThe dog\r\n"), expected)
        self.assertEqual(self.texts(b"\xef\xbb\xbfOnce\nThe dog"), expected)
        self.assertEqual(self.texts(b"\nOnce\n\n  \nThe dog\n\n"), expected)
        self.assertEqual(self.texts(b'{"prompt": "Once"}\r\n\r\n{"prompt": "The dog"}', "in.jsonl"), expected)

    def test_nothing_from_an_empty_file(self):
        for data in (b"", b"\n\n"):
            self.assertEqual(self.batch_of(data), [])
            self.assertEqual(self.output.read_bytes(), b"")

    def test_a_large_file_without_keeping_it_in_memory(self):
        def peak_memory(lines):
            file = self.write((b'{"prompt": "", "unknown": "' + b"x" * 1000000 + b'"}\n') * lines)
            batch = command("batch", file, "-o", str(self.output), "--overwrite", "--quiet", "-n", "1")
            measured = "import resource, subprocess, sys; code = subprocess.call(sys.argv[1:]); " \
                       "print(code, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
            # AddressSanitizer would keep what was freed.
            env = clean_environment(ASAN_OPTIONS=os.environ.get("ASAN_OPTIONS", "") + ":quarantine_size_mb=1")
            out = subprocess.run(["python3", "-c", measured, *batch], env=env, capture_output=True, check=True)
            code, kibibytes = map(int, out.stdout.split())
            self.assertEqual(code, DONE)
            self.assertEqual(self.output.read_bytes().count(b"\n"), lines)
            return kibibytes * 1024

        self.assertLess(peak_memory(100) - peak_memory(2), 16 << 20, "100 MB more of input may not cost as much memory")


class BatchGoesOn(BatchTest):
    def setUp(self):
        super().setUp()
        self.file = self.write(mixed_lines(COUNT))

    def run_to_the_end(self, *arguments):
        self.run_well(*self.command(self.file, *arguments), env=clean_environment())
        self.assertFalse(self.partial.exists())
        return self.output.read_bytes()

    def test_after_kill_9_at_any_moment(self):
        begin = time.monotonic()
        expected = self.expected_bytes(self.file, "--seed", "5")
        whole_s = time.monotonic() - begin
        chance = random.Random()
        kills = completed = 0
        while kills < 20:
            process = start(*self.command(self.file, "--seed", "5", "--overwrite"), env=clean_environment())
            time.sleep(chance.uniform(0.02, whole_s))
            process.kill()
            process.communicate()
            if process.returncode == -signal.SIGKILL:
                kills += 1
            else:
                completed += 1
                self.assertEqual(self.output.read_bytes(), expected)
                self.output.unlink()
        self.assertEqual(self.run_to_the_end("--seed", "5", "--overwrite"), expected)
        self.assertEqual(sorted(os.listdir(self.folder)), ["in.jsonl", "out.jsonl", "whole.jsonl"])

    def test_with_the_seed_that_was_drawn(self):
        process = start(*self.command(self.file, *ON_ITS_WAY), env=clean_environment())
        self.wait_for_results(process, 3)
        process.kill()
        process.communicate()
        kept = [json.loads(line[17:]) for line in self.partial.read_text().splitlines()[1:]]
        summary = self.run_well(*self.command(self.file, "--json"), env=clean_environment()).json()
        whole = self.output.read_bytes()
        self.assertEqual(whole, self.expected_bytes(self.file, "--seed", str(summary["seed"])))
        results = [json.loads(line) for line in whole.splitlines()]
        for result in kept:
            self.assertEqual(result, results[result["index"]])

    def test_after_ctrl_c_and_the_end_of_a_jobs_time(self):
        expected = self.expected_bytes(self.file, "--seed", "5")
        for results, number in ((2, signal.SIGINT), (8, signal.SIGHUP), (14, signal.SIGTERM)):
            def take(number=number):  # even where the tests were started by nohup
                signal.signal(number, signal.SIG_DFL)
            process = start(*self.command(self.file, "--seed", "5", *ON_ITS_WAY), env=clean_environment(), preexec_fn=take)
            self.wait_for_results(process, results)
            process.send_signal(number)
            _, err = process.communicate(timeout=60)
            self.assertEqual(process.returncode, INTERRUPTED)
            self.assertIn("run the same command again", err.decode())
            self.assertFalse(self.output.exists())
        run = self.run_well(*self.command(self.file, "--seed", "5"), env=clean_environment())
        self.assertIn("Going on: ", run.err)
        self.assertEqual(self.output.read_bytes(), expected)

    def test_when_a_file_could_not_grow(self):
        expected = self.expected_bytes(self.file, "--seed", "5")
        for size in (100, 1500, len(expected) - 100):
            def limit(size=size):
                resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
            process = start(*self.command(self.file, "--seed", "5"), env=clean_environment(), preexec_fn=limit)
            _, err = process.communicate(timeout=60)
            self.assertEqual(process.returncode, FAILED)
            self.assertIn("File too large", err.decode())
        self.assertEqual(self.run_to_the_end("--seed", "5"), expected)

    def test_when_a_full_disk_has_room_again(self):
        disk = self.folder / "disk"
        disk.mkdir()
        mount = ["unshare", "-rm", "sh", "-c", 'mount -t tmpfs -o size="$1" none "$2" && shift 2 && exec "$@"', "sh"]
        if shutil.which("unshare") is None or subprocess.run([*mount, "64k", str(disk), "true"], capture_output=True).returncode != 0:
            self.skipTest("no disk of one's own can be mounted here; the test above fills a file instead")
        # In a name space of its own the disk is there as long as the shell is.
        script = f'''
            first=0
            "$@" || first=$?
            cp {disk}/out.jsonl.partial {self.folder}/kept || exit 90
            mount -o remount,size=10m {disk} || exit 91
            "$@" || exit 92
            cp {disk}/out.jsonl {self.folder}/result || exit 93
            exit $first'''
        lines = self.write(mixed_lines(2 * COUNT))
        expected = self.expected_bytes(lines, "--seed", "5")
        run = subprocess.run(
            [*mount, "4k" if DEVICE == "cpu" else "32k", str(disk), "sh", "-c", script, "sh",
             *command(*self.command(lines, "--seed", "5", output=disk / "out.jsonl"))],
            capture_output=True, env=clean_environment(), check=False)
        self.assertEqual(run.returncode, FAILED, run.stderr.decode())
        self.assertIn("No space left on device. What is finished is kept", run.stderr.decode())
        self.assertIn("Going on: ", run.stderr.decode())
        self.assertGreater((self.folder / "kept").read_bytes().count(b"\n"), 3)
        self.assertEqual((self.folder / "result").read_bytes(), expected)

    def test_with_all_but_what_was_damaged(self):
        expected = self.expected_bytes(self.file, "--seed", "5")
        process = start(*self.command(self.file, "--seed", "5", *ON_ITS_WAY), env=clean_environment())
        self.wait_for_results(process, 5)
        process.kill()
        process.communicate()
        lines = self.partial.read_bytes().splitlines(keepends=True)
        lines[2] = lines[2].replace(b"e", b"f")
        self.partial.write_bytes(b"".join(lines) + b"0123456789abcdef {\"index\":")
        run = self.run_well(*self.command(self.file, "--seed", "5"), env=clean_environment())
        self.assertIn("1 line of", run.err)
        self.assertEqual(self.output.read_bytes(), expected)

    def test_only_with_the_same_model_options_and_input(self):
        process = start(*self.command(self.file, "--seed", "5", "--temperature", "0.7", *ON_ITS_WAY), env=clean_environment())
        self.wait_for_results(process, 1)
        process.kill()
        process.communicate()
        kept = self.partial.read_bytes()
        same = ("--seed", "5", "--temperature", "0.7")
        for message, changed in {
            "--temperature was 0.7 and is 0.8": ("--seed", "5", "--temperature", "0.8"),
            "--temperature was 0.7 and is not given": ("--seed", "5"),
            "--seed was 5 and is 6": ("--seed", "6", "--temperature", "0.7"),
            "--max-tokens was 512 and is 7": (*same, "-n", "7"),
            "--stop was [] and is": (*same, "--stop", "x"),
            "--context was 1024 and is 500": (*same, "--context", "500"),
            "--window was 128 and is 64": (*same, "--window", "64"),
            f'--kv-type was "{"f32" if DEVICE == "cpu" else "bf16"}" and is "q8"': (*same, "--kv-type", "q8"),
            "--chat was false and is true": (*same, "--chat"),
        }.items():
            self.assert_refuses(FAILED, message, *self.command(self.file, *changed))
        original = pathlib.Path(self.file).read_bytes()
        self.write(mixed_lines(COUNT + 1))
        self.assert_refuses(FAILED, "INPUT has changed", *self.command(self.file, *same))
        pathlib.Path(self.file).write_bytes(original)
        self.assertEqual(self.partial.read_bytes(), kept)
        self.run_to_the_end("--temperature", "0.7", "--parallel", "2", "--chunk", "9")

    def test_not_while_another_run_writes_the_same_output(self):
        process = start(*self.command(self.file, "--seed", "5", *ON_ITS_WAY), env=clean_environment())
        self.wait_for_results(process, 0)
        self.assert_refuses(FAILED, "another gemma-run", *self.command(self.file, "--seed", "5"))
        process.communicate(timeout=60)
        self.assertEqual(process.returncode, DONE)

    def test_after_an_end_between_the_output_and_the_removal_of_what_led_to_it(self):
        process = start(*self.command(self.file, "--seed", "5", *ON_ITS_WAY), env=clean_environment())
        self.wait_for_results(process, 0)
        other_name = self.folder / "kept"
        os.link(self.partial, other_name)
        process.communicate()
        kept = other_name.read_bytes()
        self.assertEqual(kept.count(b"\n"), COUNT + 1)
        whole = self.output.read_bytes()
        self.partial.write_bytes(kept)
        self.assertEqual(self.run_to_the_end("--seed", "5"), whole)
        self.partial.write_bytes(kept)
        self.output.write_bytes(b"something else")
        self.assert_refuses(FAILED, "exists already", *self.command(self.file, "--seed", "5", "--quiet"))
        self.assertEqual(self.output.read_bytes(), b"something else")


class BatchInShards(BatchTest):
    def setUp(self):
        super().setUp()
        self.file = self.write(mixed_lines(11) + ["bad"])

    def merge(self, *arguments):
        return self.run_well("batch", "--merge", str(self.output), *arguments, env=clean_environment())

    def shard(self, number, count):
        return self.folder / f"out.shard-{number}-of-{count}.jsonl"

    def test_gives_merged_what_one_run_gives(self):
        expected = self.expected_bytes(self.file, "--seed", "5")
        for count in (3, 13):
            for number in range(1, count + 1):
                self.run_well(*self.command(self.file, "--seed", "5", "--shard", f"{number}/{count}"), env=clean_environment())
            self.assertFalse(self.output.exists())
            indices = [json.loads(line)["index"] for line in self.shard(2, count).read_text().splitlines()]
            self.assertEqual(indices, list(range(1, 12, count)))
            shards = [str(self.shard(number, count)) for number in range(1, count + 1)]
            run = self.merge(*shards[::-1])
            self.assertIn("1 failed", run.err)
            self.assertEqual(self.output.read_bytes(), expected)
            self.output.unlink()
        self.assert_refuses(FAILED, "name the files", "batch", "--merge", str(self.output))

    def test_by_the_rank_that_the_launcher_gives(self):
        launchers = [
            lambda rank: {"SLURM_PROCID": str(rank), "SLURM_NTASKS": "2", "SLURM_LOCALID": str(rank)},
            lambda rank: {"OMPI_COMM_WORLD_RANK": str(rank), "OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_LOCAL_RANK": "0"},
            lambda rank: {"PMI_RANK": str(rank), "PMI_SIZE": "2"},
        ]
        merged = set()
        for launcher in launchers:
            for rank in (0, 1):
                run = self.run_well(*self.command(self.file, "--overwrite"), env=clean_environment(**launcher(rank)))
                self.assertIn(f"doing shard {rank + 1}/2", run.err)
            self.merge("--overwrite")
            merged.add(self.output.read_bytes())
        # All shards of a run without --seed draw the same, and so one run with that seed gives the same.
        self.assertEqual(len(merged), 1)
        seed = json.loads((self.folder / "out.shard-1-of-2.jsonl.run").read_text())["identity"]["seed"]
        self.assertEqual(self.expected_bytes(self.file, "--seed", str(seed)), merged.pop())

    def test_not_when_told_to_do_all(self):
        env = clean_environment(SLURM_PROCID="1", SLURM_NTASKS="2")
        self.assertEqual(len(self.batch(self.file, "-n", "2", "--shard", "1/1", env=env)), 12)
        self.assert_refuses(FAILED, "$PMI_RANK", *self.command(self.file), env=clean_environment(PMI_RANK="5", PMI_SIZE="2"))

    def test_leaves_a_finished_shard_as_it_is_and_goes_on_with_the_others(self):
        command = self.command(self.file, "--seed", "5", "--shard", "1/2")
        self.run_well(*command, env=clean_environment())
        before = self.shard(1, 2).stat()
        self.assertIn("finished already", self.run_well(*command, env=clean_environment()).err)
        self.assertEqual(self.shard(1, 2).stat(), before)
        self.assert_refuses(FAILED, "exists already", *self.command(self.file, "--seed", "6", "--shard", "1/2"))

    def test_merges_only_all_shards_of_one_run_as_they_were_finished(self):
        merge = ("batch", "--merge", str(self.output))
        self.assert_refuses(FAILED, "there are no shards", *merge)
        first, second = str(self.shard(1, 2)), str(self.shard(2, 2))
        self.run_well(*self.command(self.file, "--seed", "5", "--shard", "1/2"), env=clean_environment())
        self.assert_refuses(FAILED, "shard 2/2 is not finished", *merge)
        self.run_well(*self.command(self.file, "--seed", "6", "--shard", "2/2"), env=clean_environment())
        self.assert_refuses(FAILED, "--seed was 5 and is 6", *merge)
        self.run_well(*self.command(self.file, "--seed", "5", "--shard", "2/2", "--overwrite"), env=clean_environment())
        self.assert_refuses(FAILED, "and so is", *merge, first, first)
        self.assert_refuses(FAILED, "there are 1 files", *merge, first)
        whole = self.shard(2, 2).read_bytes()
        for changed in (whole[:-1], whole.replace(b"e", b"f", 1), whole + b"\n", b"".join(whole.splitlines(keepends=True)[1:])):
            self.shard(2, 2).write_bytes(changed)
            self.assert_refuses(FAILED, "cannot merge", *merge)
            self.assertFalse(self.output.exists())
        self.shard(2, 2).write_bytes(whole)
        os.rename(second + ".run", second + ".lost")
        self.assert_refuses(FAILED, ".run', which a finished shard has", *merge)
        os.rename(second + ".lost", second + ".run")
        self.merge()
        self.assert_refuses(FAILED, "exists already", *merge)
        self.assertEqual(self.output.read_bytes(), self.expected_bytes(self.file, "--seed", "5"))


class BatchRefuses(BatchTest):
    def test_usage_that_makes_no_sense(self):
        file = self.write(PROMPTS, "in.txt")
        self.assert_refuses(USAGE, "name one INPUT", "batch")
        self.assert_refuses(USAGE, "name one INPUT", "batch", "-", "-o", str(self.output))
        self.assert_refuses(USAGE, "name one INPUT", *self.command(file, file))
        self.assert_refuses(USAGE, "-o FILE", "batch", file)
        self.assert_refuses(USAGE, "-o FILE", "batch", file, "-o", "-")
        self.assert_refuses(USAGE, "its own results", "batch", file, "-o", file)
        self.assert_refuses(USAGE, "must end in .txt", *self.command(str(DEMO_MODEL)))
        self.assert_refuses(USAGE, "not a regular file", "batch", file, "-o", "/dev/null")
        self.assert_refuses(USAGE, "counted from 1 to 4", *self.command(file, "--shard", "0/4"))
        self.assert_refuses(USAGE, "2/8", *self.command(file, "--shard", "3"))
        self.assert_refuses(USAGE, "--merge", *self.command(file, "--merge", "x"))
        self.assert_refuses(USAGE, "--parallel", *self.command(file, "--parallel", "0"))
        self.assert_refuses(USAGE, "--parallel", *self.command(file, "--parallel", "4097"))

    def test_files_that_cannot_be_used(self):
        file = self.write(PROMPTS, "in.txt")
        self.assert_refuses(FAILED, "/nowhere/in.txt", *self.command("/nowhere/in.txt"))
        self.assert_refuses(FAILED, "/nowhere/out.jsonl", "batch", file, "-o", "/nowhere/out.jsonl")
        self.assert_refuses(FAILED, "is a directory", "batch", file, "-o", str(self.folder))
        self.assert_refuses(FAILED, "/nowhere.gemma", *self.command(file, "-m", "/nowhere.gemma"))
        self.assertEqual(os.listdir(self.folder), ["in.txt"])

    def test_to_replace_an_output_unless_told_to(self):
        file = self.write(PROMPTS, "in.txt")
        self.output.write_text("precious")
        self.assert_refuses(FAILED, "--overwrite", *self.command(file, "-n", "2"))
        self.assertEqual(self.output.read_text(), "precious")
        self.assertEqual(len(self.batch(file, "-n", "2", "--overwrite")), 5)

    def test_to_go_on_from_a_file_that_it_has_not_made(self):
        file = self.write(PROMPTS, "in.txt")
        self.partial.write_text("my diary\n")
        self.assert_refuses(FAILED, "remove it to start over", *self.command(file))
        self.assertEqual(self.partial.read_text(), "my diary\n")


if __name__ == "__main__":
    main()
