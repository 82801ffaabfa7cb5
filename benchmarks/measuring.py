"""What the benchmarks share: rounds in which everything has its turn, medians, the machine, and the record.

A contender is a function without arguments that does its work once, and gives back numbers by name; "seconds" is
one of them. Or it is several, its steps: then all contenders do each step before any does the next. Each round runs
all contenders, and every round and step begins with another one, so that a machine which is slow for a while is slow
for all.
"""

import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"

Numbers = dict[str, float]
Work = Callable[[], Numbers]
Contenders = Mapping[str, Work | Sequence[Work]]


def one_round(contenders: Contenders, number: int) -> dict[str, Numbers]:
    """Run every contender once, and return what each gives back."""
    steps = {name: [work] if callable(work) else work for name, work in contenders.items()}
    names, found = list(steps), {name: {} for name in steps}
    for position in range(max(map(len, steps.values()))):
        first = (number + position) % len(names)
        for name in names[first:] + names[:first]:
            numbers = steps[name][position]()
            found[name] |= numbers
            shown = ", ".join(f"{key} {value:,.2f}" for key, value in numbers.items())
            print(f"round {number + 1}: {name}: {shown}", file=sys.stderr, flush=True)
    return found


def rounds(contenders: Contenders, count: int) -> Iterator[list[dict[str, Numbers]]]:
    """Yield the results of all rounds so far, after each of `count` rounds: one that is cut short is not lost."""
    results: list[dict[str, Numbers]] = []
    for number in range(count):
        results.append(one_round(contenders, number))
        yield results


def median(results: list[dict[str, Numbers]], name: str, key: str = "seconds") -> float:
    """Return the median of one contender's number."""
    return statistics.median(result[name][key] for result in results)


def share(results: list[dict[str, Numbers]], name: str, other: str, key: str) -> float:
    """Return the median of what one contender's number is of another's in each round."""
    return statistics.median(result[name][key] / result[other][key] for result in results)


def machine() -> dict[str, str]:
    """Return when and on what this runs."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    model = next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.processor())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    engine = ["docker", "version", "--format", "{{.Server.Version}}"]
    return {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "machine": f"{os.cpu_count()} cores ({model}), {memory:.0f} GiB, {platform.system()} {platform.release()}",
        "engine": "Docker " + subprocess.run(engine, capture_output=True, text=True, check=True).stdout.strip(),
        "python": platform.python_version(),
    }


def record(name: str, about: dict, results: list | dict) -> None:
    """Write benchmarks/results/NAME.json: what was measured, on what, and every single number."""
    RESULTS.mkdir(exist_ok=True)
    text = json.dumps({**machine(), **about, "rounds": results}, indent=1)
    (RESULTS / f"{name}.json").write_text(text + "\n")
