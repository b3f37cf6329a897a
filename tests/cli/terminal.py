"""A terminal for the tests beside this file: runs gemma-run in it, types keys, and reads what the screen shows."""

import fcntl
import os
import pty
import re
import select
import struct
import termios
import time
import unicodedata

from gemma_run import PROGRAM, command, environment

ENTER, BACKSPACE, UP, LEFT = "\r", "\x7f", "\x1b[A", "\x1b[D"
CTRL_A, CTRL_C, CTRL_D, CTRL_E = "\x01", "\x03", "\x04", "\x05"
ALT_ENTER = "\x1b\r"
TIMEOUT_S = 60


def pasted(text):
    """What a terminal sends when a text is pasted into a program that has asked to be told."""
    return "\x1b[200~" + text.replace("\n", "\r") + "\x1b[201~"


class Screen:
    """As much of an xterm as line editing needs, without the scrolled-off part's end: lines are never thrown away."""

    SEQUENCE = re.compile(r"\x1b\[(\??)([\d;]*)([@A-Za-z])")

    def __init__(self, columns):
        self.columns = columns
        self.rows = [[]]
        self.row = self.column = 0

    def lines(self):
        return ["".join(row).rstrip() for row in self.rows]

    def show(self, text):
        at = 0
        while at < len(text):
            sequence = self.SEQUENCE.match(text, at)
            if sequence:
                self.obey(*sequence.groups())
                at = sequence.end()
            else:
                if text[at] == "\x1b":
                    raise AssertionError(f"the terminal was sent {text[at:at + 10]!r}")
                self.put(text[at])
                at += 1

    def put(self, character):
        if character == "\r":
            self.column = 0
        elif character == "\n":
            self.go_down()
        elif character == "\b":
            self.column = max(self.column - 1, 0)
        elif character >= " ":
            width = 2 if unicodedata.east_asian_width(character) in "WF" else 1
            if self.column + width > self.columns:
                self.column = 0
                self.go_down()
            row = self.rows[self.row]
            row.extend(" " * (self.column + width - len(row)))
            row[self.column : self.column + width] = [character] + [""] * (width - 1)
            self.column += width
        else:
            raise AssertionError(f"the terminal was sent {character!r}")

    def go_down(self):
        self.row += 1
        if self.row == len(self.rows):
            self.rows.append([])

    def obey(self, private, argument, command):
        count = int(argument) if argument.isdigit() else 1
        row = self.rows[self.row]
        if private or command == "m":
            return
        if command == "A":
            self.row -= min(count, self.row)
        elif command == "C":
            self.column = min(self.column + count, self.columns - 1)
        elif command == "D":
            self.column = max(self.column - count, 0)
        elif command == "G":
            self.column = count - 1
        elif command == "K":
            del row[self.column :]
        elif command == "J":
            del row[self.column :]
            del self.rows[self.row + 1 :]
        elif command == "P":
            del row[self.column : self.column + count]
        elif command == "@":
            row[self.column : self.column] = [" "] * count
        else:
            raise AssertionError(f"the terminal was sent ESC [ {argument} {command}")


class Terminal:
    """gemma-run on a terminal of its own. Use it in a with statement, which ends the program."""

    def __init__(self, *arguments, columns=80, rows=24, **changes):
        self.process, self.terminal = pty.fork()
        if self.process == 0:
            fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
            os.execve(PROGRAM, command(*arguments), environment(**changes))
        self.columns = columns
        self.received = b""
        self.seen = 0
        self.exit_code = None

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        if self.exit_code is None:
            os.kill(self.process, 9)
            os.waitpid(self.process, 0)
        os.close(self.terminal)

    @property
    def output(self):
        return self.received.decode("utf-8", errors="ignore")

    def screen(self):
        screen = Screen(self.columns)
        screen.show(self.output)
        return screen.lines()

    def modes(self):
        return termios.tcgetattr(self.terminal)[3]

    def signal(self, number):
        os.kill(self.process, number)

    def type(self, *keys):
        data = "".join(keys).encode()
        while data:
            # What is shown must be read while a long text is typed, or both sides would wait for each other.
            readable, writable, _ = select.select([self.terminal], [self.terminal], [], TIMEOUT_S)
            if readable:
                self.received += os.read(self.terminal, 1 << 16)
            if writable:
                data = data[os.write(self.terminal, data[:512]) :]

    def wait_for_prompt(self):
        """Waits for a new prompt; one that is only drawn again stands behind no line break."""
        self.wait_for(r"(^|\n|\x1b\[\?2004h)>>> ")

    def wait_for(self, pattern):
        """Reads on until something that matches comes behind what was waited for before."""
        end = time.monotonic() + TIMEOUT_S
        while not (found := re.compile(pattern).search(self.output, self.seen)):
            readable, _, _ = select.select([self.terminal], [], [], max(end - time.monotonic(), 0))
            if not readable:
                raise AssertionError(f"{pattern!r} did not come:\n{self.output[self.seen:]!r}")
            try:
                self.received += os.read(self.terminal, 1 << 16)
            except OSError:  # how Linux says that the program has ended
                raise AssertionError(f"{pattern!r} did not come before the end:\n{self.output[self.seen:]!r}") from None
        self.seen = found.end()

    def end(self):
        """Reads on until the program ends. @return its exit code, negative for a signal"""
        while True:
            readable, _, _ = select.select([self.terminal], [], [], TIMEOUT_S)
            if not readable:
                raise AssertionError(f"the program did not end:\n{self.output[self.seen:]!r}")
            try:
                self.received += os.read(self.terminal, 1 << 16)
            except OSError:
                break
        self.exit_code = os.waitstatus_to_exitcode(os.waitpid(self.process, 0)[1])
        return self.exit_code
