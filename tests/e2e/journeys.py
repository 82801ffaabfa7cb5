"""Runs what a page of the documentation prints, in order, as one user in one shell; compares what comes out.

A block marked `console` holds commands after `$ ` (continued after `> `), each followed by what it prints. A block
marked `sh` holds commands alone. Every command must succeed, but for one under which make says that it failed. A `…`
in printed output stands for anything, on a line of its own for any number of lines; `VARIABLE` says what else may
differ from one time to the next.
"""

import difflib
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pexpect.popen_spawn import PopenSpawn

MARK = "what follows a command, and nothing else:"
# What is printed as it was once seen, and is different each time -> what it must look like.
VARIABLE = {
    r"\d[\d,]*(?:\.\d+)? (?:s|rows/s|[kMG]?B(?:/s)?|[KMG]iB|bytes)\b": (
        r"\d[\d,]*(?:\.\d+)? (?:s|rows/s|[kMG]?B(?:/s)?|[KMG]iB|bytes)"
    ),
    # How many files a model or a trace has is the client's affair.
    r"\d[\d,]* (?:objects|were there)": r"\d[\d,]* (?:objects|were there)",
    r"\b[0-9a-f]{32}\b": r"[0-9a-f]{32}",  # ids of runs
    r"\b\d{18}\b": r"\d{18}",  # ids of experiments in an mlruns folder
    r"\d{8}-\d{6}": r"\d{8}-\d{6}",  # a time in a file's name
    r"\d{8}T\d{6}Z": r"\d{8}T\d{6}Z",  # a backup
}  # fmt: skip
FAILED = re.compile(r"^make: \*\*\* ", re.MULTILINE)


@dataclass(frozen=True)
class Step:
    """A command, the line of the page on which it stands, and what is printed below it (None: nothing is said)."""

    line: int
    command: str
    output: str | None


def steps(page: str) -> list[Step]:
    """Return the commands of a page in order. Raises ValueError for a console block that starts with no command."""
    found: list[Step] = []
    for block in re.finditer(r"^```(sh|console)\n(.*?)^```$", page, re.MULTILINE | re.DOTALL):
        line = page.count("\n", 0, block.start()) + 2
        if block[1] == "sh":
            found.append(Step(line, block[2], None))
            continue
        parts = re.split(r"^\$ ", block[2], flags=re.MULTILINE)
        if parts[0]:
            raise ValueError(f"line {line}: a console block starts with '$ '")
        for part in parts[1:]:
            command, *rest = part.splitlines()
            while rest and rest[0].startswith("> "):
                command += "\n" + rest.pop(0)[2:]
            found.append(Step(line, command, "".join(f"{text}\n" for text in rest)))
            line += part.count("\n")
    return found


def pattern(output: str, variable: Mapping[str, str] = VARIABLE) -> re.Pattern[str]:
    """Return what real output must look like to be what is printed."""
    lines, shapes = [], "|".join(f"({shape})" for shape in variable)
    for line in output.splitlines():
        if line == "…":
            lines.append("(?:.*\n)*?")
            continue
        text, done = "", 0
        for match in re.finditer(f"…|{shapes}", line):
            shape = ".*" if match[0] == "…" else list(variable.values())[(match.lastindex or 1) - 1]
            text, done = text + re.escape(line[done : match.start()]) + shape, match.end()
        lines.append(text + re.escape(line[done:]) + "\n")
    return re.compile("".join(lines))


class Shell:
    """One user's shell. `instead` says what stands for what is printed: printed -> real; `also` what else may vary."""

    def __init__(
        self,
        folder: Path,
        env: Mapping[str, str],
        instead: Mapping[str, str],
        timeout: float = 600,
        also: Mapping[str, str] | None = None,
    ):
        """Start it in a folder."""
        self.instead, self.variable = dict(instead), VARIABLE | dict(also or {})
        self.bash = PopenSpawn(["bash"], cwd=str(folder), env=dict(env), encoding="utf-8", timeout=timeout)

    def close(self) -> None:
        """End it."""
        self.bash.sendeof()
        self.bash.wait()

    def real(self, text: str) -> str:
        """Return printed text with what really is there."""
        for printed in sorted(self.instead, key=len, reverse=True):
            text = text.replace(printed, self.instead[printed])
        return text

    def printed(self, text: str) -> str:
        """Return real text as it would be printed."""
        for printed, real in sorted(self.instead.items(), key=lambda pair: -len(pair[1])):
            text = text.replace(real, printed) if real else text
        return text

    def run(self, command: str) -> tuple[int, str]:
        """Run one command; return its exit code and what it printed."""
        self.bash.sendline(f"{{\n{self.real(command)}\n}} </dev/null 2>&1; printf '%s %s\\n' {shlex.quote(MARK)} $?")
        self.bash.expect(re.escape(MARK) + r" (\d+)\n")
        return int(self.bash.match[1]), self.printed(self.bash.before)

    def play(self, page: Path, start: str = "", end: str = "") -> None:
        """Run the commands of a page, from one heading on and up to another.

        Raises AssertionError at the first that fails, or does not fail as printed, or prints something else.
        """
        lines = page.read_text(encoding="utf-8").splitlines()
        first = lines.index(start) if start else 0
        last = lines.index(end) if end else len(lines)
        for step in steps("\n".join(lines) + "\n"):
            if not first < step.line <= last:
                continue
            where = f"{page.name}:{step.line}: {step.command.strip()}"
            code, output = self.run(step.command)
            fails = bool(FAILED.search(step.output or ""))
            assert bool(code) == fails, f"{where}\nended with {code}:\n{output}"
            if step.output is not None and not pattern(step.output, self.variable).fullmatch(output):
                lines = difflib.unified_diff(
                    step.output.splitlines(), output.splitlines(), "as printed", "as it is", lineterm="", n=50
                )
                raise AssertionError(f"{where}\nprints something else:\n" + "\n".join(lines))
