"""Says what is wrong with this stack before its users do, and which command mends it.

scripts/doctor.sh collects the facts and hands them over on standard input, and the stack's folder as /stack.
With `--inside`, in the running server, it prints what only that one knows.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from stackops import settings
from stackops.diagnosis import containers, exposure, files, live
from stackops.diagnosis.facts import OK, SERIOUS, WARN, Facts, Finding, sections
from stackops.errors import StackError, one_line

HELP = "say what is wrong with this stack and what mends it; scripts/doctor.sh calls it"
Check = Callable[[Facts], list[Finding] | None]
CHECKS: tuple[Check, ...] = (*containers.CHECKS, *live.CHECKS, *files.CHECKS, *exposure.CHECKS)
ORDER = (SERIOUS, WARN, OK)


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's options."""
    parser.add_argument("--inside", action="store_true", help="print the facts that the running server knows")
    parser.add_argument("--served", default="", metavar="HOST:PORT=NAME", help="with --inside: where TLS is")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    parser.add_argument("--folder", default="/stack", help="the stack's folder (default: /stack)")


def examine(facts: Facts, checks: Sequence[Check] = CHECKS) -> list[Finding]:
    """Run every check. One without findings gives an `ok`; one that breaks off is a finding."""
    found = []
    for check in checks:
        name = check.__name__.replace("_", " ")
        try:
            said = check(facts)
        except Exception as error:
            text = f"could not be checked ({type(error).__name__}: {one_line(error, 120)})"
            said = [Finding(WARN, name, text, "make status")]
        if said is not None:
            found += said or [Finding(OK, name, one_line(check.__doc__ or name).split(". ")[0].rstrip("."))]
    return sorted(found, key=lambda one: ORDER.index(one.level))


def summary(found: Sequence[Finding]) -> str:
    """Return the last line of the report."""
    number = {level: sum(one.level == level for one in found) for level in ORDER}
    return f"{number[SERIOUS]} serious, {number[WARN]} to look at, {number[OK]} ok"


def report(found: Sequence[Finding]) -> str:
    """Return the report for people: the worst first, each with the command that mends it."""
    lines = []
    for one in found:
        lines.append(f"{one.level:<8} {one.check}: {one.text}")
        if one.command:
            lines.append(f"{'':<8} -> {one.command}")
    return "\n".join([*lines, summary(found)])


def run(args: argparse.Namespace) -> None:
    """Print the report. Raises StackError if anything is serious."""
    if args.inside:
        print(json.dumps(live.collect(settings.present(os.environ), args.served)))
        return
    facts = Facts(Path(args.folder), sections(sys.stdin), time.time())
    found = examine(facts)
    if args.json:
        print(json.dumps({"findings": [vars(one) for one in found], "summary": summary(found)}, indent=2))
    else:
        print(report(found))
    if any(one.level == SERIOUS for one in found):
        sys.stdout.flush()
        raise StackError("something is serious: see above")
