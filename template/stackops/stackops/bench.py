"""Measures the stack as its clients see it, and says what the figures mean.

Writes, reads and artifacts, four clients at once, in an experiment of its own. Three steps, which
scripts/bench.sh calls: --look beside the server, then the measuring as a client, then --remove beside the
server, which takes everything away for good, also what an earlier measurement has left.
"""

import argparse
import contextlib
import dataclasses
import json
import logging
import os
import signal
import sys
import tempfile
import time
import uuid
import warnings
from collections.abc import Sequence
from pathlib import Path

from stackops import check, settings
from stackops.benching.advice import Facts, Figure, advise, milliseconds
from stackops.errors import StackError, one_line

HELP = "measure writes, reads and artifacts as a client, and say what they mean"
LEAST, MOST = 5, 100
"""Seconds of measuring."""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's options."""
    step = parser.add_mutually_exclusive_group()
    step.add_argument("--look", action="store_true", help="only print what is known of the stack, as JSON")
    step.add_argument("--remove", action="store_true", help="only remove what measurements have left")
    parser.add_argument("--facts", default="{}", metavar="JSON", help="what --look has printed")
    parser.add_argument("--fitting", type=int, metavar="N", help="workers that fit this machine")
    parser.add_argument("--seconds", default="60", metavar="N", help=f"{LEAST} to {MOST} (default: 60)")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")


def seconds(text: str) -> int:
    """Return how long to measure. Raises StackError for anything but a fitting number."""
    if not text.isdecimal() or not LEAST <= int(text) <= MOST:
        raise StackError(f"FOR is {text!r}; use a whole number from {LEAST} to {MOST}")
    return int(text)


def run(args: argparse.Namespace) -> None:
    """Do the step that was asked for. Raises StackError."""
    length = seconds(args.seconds)
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    if args.look or args.remove:
        from stackops.benching import around

        env = settings.adopt()
        found = around.look(env) if args.look else None
        around.remove(env, lambda text: print(text, file=sys.stderr, flush=True))
        if found:
            print(json.dumps(found), flush=True)
        return
    measure(args, length)


def measure(args: argparse.Namespace, length: int) -> None:
    """Measure, and print the table and the advice."""
    from stackops.benching.around import PREFIX, TAG
    from stackops.benching.load import CLIENTS, Measuring, usual

    name = f"{PREFIX}{uuid.uuid4().hex[:12]}"
    facts = json.loads(args.facts)
    cpus = os.cpu_count() or 1
    known = Facts(**{"workers": 1, "fitting": args.fitting or facts.get("workers", 1), "cpus": cpus, **facts})
    os.environ.update(check.client_environment(os.environ))
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        import mlflow
        from mlflow import MlflowClient

        mlflow.set_tracking_uri(os.environ["MLFLOW_TRACKING_URI"])
        client = MlflowClient()
        before = usual()
        experiment = client.create_experiment(name, tags={TAG: ""})
    except Exception as error:
        raise StackError(f"the stack does not answer: {one_line(error)}; see 'make status'") from error
    figures: list[Figure] = []
    if not args.json:
        print(
            f"{CLIENTS} clients, about {length} seconds, in the experiment {name!r}\n{heading()}", flush=True
        )
    used, began = time.process_time(), time.monotonic()
    with check.deadline(2 * length + 60), tempfile.TemporaryDirectory() as folder:
        measuring = Measuring(client, experiment, length, Path(folder))
        with contextlib.closing(measuring.figures()) as rows:
            for figure in rows:
                figures.append(figure)
                if not args.json:
                    print(line(figure), flush=True)
    mine = (time.process_time() - used) / (time.monotonic() - began)
    sentences = advise(figures, known, mine, before)
    print(
        as_json(figures, known, mine, before, sentences) if args.json else told(known, sentences), flush=True
    )


def heading() -> str:
    """Return the head of the table."""
    return f"{'':<24}{'a second':>13}{'half within':>14}{'95 % within':>14}{'machine busy':>15}"


def line(one: Figure) -> str:
    """Return one row of the table."""
    rate = f"{one.rate:,.1f}{' MiB' if one.unit == 'MiB/s' else ''}"
    busy = "" if one.busy is None else f"{one.busy:.0%}"
    return (
        f"{one.name:<24}{rate:>13}{milliseconds(one.p50):>14}{milliseconds(one.p95):>14}{busy:>15}".rstrip()
    )


def told(facts: Facts, sentences: Sequence[str]) -> str:
    """Return what is below the table."""
    return "\n".join(
        [
            "",
            f"server    {facts.workers} worker{'' if facts.workers == 1 else 's'} on {facts.cpus} processors",
            f"disk      has what was written after {milliseconds(facts.sync)}",
            f"database  answers a question after {milliseconds(facts.round)}",
            "",
            *sentences,
        ]
    )


def as_json(
    figures: Sequence[Figure],
    facts: Facts,
    client: float,
    before: float | None,
    sentences: Sequence[str],
) -> str:
    """Return everything for machines; times in seconds."""
    return json.dumps(
        {
            "figures": [dataclasses.asdict(figure) for figure in figures],
            "stack": dataclasses.asdict(facts),
            "client": client,
            "busy_before": before,
            "advice": list(sentences),
        },
        indent=2,
    )
