import unittest

from gemma_run import DONE, FAILED, USAGE, CommandLineTest, Run

COMMANDS = ("prompt", "chat", "batch", "score", "tokenize", "inspect")


class Usage(CommandLineTest):
    def test_help_fits_an_80_column_terminal_and_goes_to_standard_output(self):
        for arguments in [()] + [(command,) for command in COMMANDS]:
            run = Run(*arguments, "--help")
            self.assertEqual((run.code, run.err), (DONE, ""))
            self.assertLessEqual(max(map(len, run.out.splitlines())), 80, run.out)

    def test_every_option_tells_what_it_does_and_its_default(self):
        for command in COMMANDS:
            for line in Run(command, "--help").out.splitlines():
                name = line.strip().split(" ")[0]
                if line.startswith("  -") and name not in ("-h,--help", "--file", "--tokens", "--tokens-file"):
                    with self.subTest(command=command, option=name):
                        self.assertRegex(line, r"\[.+\]$")

    def test_version_names_devices_and_architectures(self):
        run = Run("--version")
        self.assertEqual((run.code, run.err), (DONE, ""))
        self.assertRegex(run.out, r"^gemma-run \d+\.\d+\.\d+\nCPU: ")
        self.assertIn("CUDA", run.out)

    def test_wrong_usage_is_told_in_one_line(self):
        self.assert_fails(USAGE, "name a command")
        self.assert_fails(USAGE, "no command 'dance'", "dance")
        self.assert_fails(USAGE, "no command", "dance", "--fast")
        self.assert_fails(USAGE, "no option '--wings'", "inspect", "--wings")
        self.assert_fails(USAGE, "--threads", "prompt", "--threads")

    def test_the_hint_names_the_commands_own_help(self):
        self.assertIn("(see gemma-run score --help)", Run("score", "--threads", "0").err)

    def test_a_device_that_is_not_there_is_refused(self):
        self.assert_fails(FAILED, "--device cpu", "prompt", "Once", "--device", "cuda:99")


if __name__ == "__main__":
    unittest.main()
