"""The runner of the journeys itself: it must fail where a page and the world differ. Needs no Docker."""

import contextlib
import os
from pathlib import Path

import pytest
from journeys import Shell, pattern, steps

PAGE = """\
Words.

```console
$ cd sub
$ ls
one
$ printf '%s\\n' a b \\
>   c
a
…
c
```

```yaml
not: run
```

```sh
X=kept
pwd
```

## The end

```console
$ echo "$X took 1.5 s in /printed"
kept took 22 s in /printed
```
"""


@pytest.fixture
def page(tmp_path: Path) -> Path:
    """The page, in a folder with what it speaks of."""
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "one").write_text("")
    path = tmp_path / "page.md"
    path.write_text(PAGE)
    return path


def play(page: Path, **part: str) -> None:
    """Play it in its folder."""
    shell = Shell(page.parent, os.environ, {"/printed": "/real"}, timeout=20)
    try:
        shell.play(page, **part)
    finally:
        shell.close()


def test_it_reads_the_commands_and_their_lines() -> None:
    found = steps(PAGE)
    assert [(step.line, step.command.splitlines()[0]) for step in found] == [
        (4, "cd sub"), (5, "ls"), (7, "printf '%s\\n' a b \\"), (19, "X=kept"),
        (26, 'echo "$X took 1.5 s in /printed"'),
    ]  # fmt: skip
    assert found[2].command.endswith("\n  c") and found[2].output == "a\n…\nc\n" and found[3].output is None


def test_it_plays_a_page_in_one_shell(page: Path) -> None:
    play(page)


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("one\n", "two\n", "prints something else"),
        ("a\n…\nc", "a\nc", "prints something else"),
        ("kept took", "lost took", "prints something else"),
        ("22 s", "22 MB/h", "prints something else"),
        ("$ ls\none\n", "$ ls\n", "prints something else"),
        ("$ ls\n", "$ ls; false\n", "ended with 1"),
    ],
)
def test_it_finds_what_differs(page: Path, old: str, new: str, reason: str) -> None:
    assert old in PAGE
    page.write_text(PAGE.replace(old, new))
    with pytest.raises(AssertionError, match=reason):
        play(page)


def test_it_plays_a_part(page: Path) -> None:
    play(page, end="## The end")
    with pytest.raises(AssertionError, match=r"page\.md:26"):
        play(page, start="## The end")  # X is not set


def test_only_what_is_known_to_vary_may_differ() -> None:
    shape = pattern("moved 30 rows in 3.5 s, run 33aa6813f9454ad4947a370a346469fe\n")
    assert shape.fullmatch("moved 30 rows in 0.1 s, run 00aa6813f9454ad4947a370a346469ff\n")
    assert not shape.fullmatch("moved 31 rows in 3.5 s, run 33aa6813f9454ad4947a370a346469fe\n")
    assert not shape.fullmatch("moved 30 rows in 3.5 s, run none\n")


@pytest.mark.parametrize(
    ("command", "output", "reason"),
    [
        ("false", "", "ended with 1"),
        ("echo 'make: *** [up] Error 1'", "make: *** …\n", "ended with 0"),
        ("echo 'make: *** [up] Error 1'; false", "make: *** …\n", None),
        ("echo other; false", "make: *** …\n", "prints something else"),
    ],
)
def test_what_fails_is_printed_as_make_says_it(page: Path, command: str, output: str, reason: str | None) -> None:
    page.write_text(f"```console\n$ {command}\n{output}```\n")
    with pytest.raises(AssertionError, match=reason) if reason else contextlib.nullcontext():
        play(page)


def test_a_console_block_starts_with_a_command() -> None:
    with pytest.raises(ValueError, match="line 2"):
        steps("```console\nls\n```\n")
