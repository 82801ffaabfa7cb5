"""Which stacks the end-to-end suite starts: a covering array, computed from the questions.

Every pair of values that can work together is in at least one scenario, and every value of every question in at least
two. So a new value of a question is started and tested without being told.
"""

import functools
import itertools
import random
from dataclasses import dataclass
from typing import Any

import jinja2
from combinations import DOMAINS, PREFIXES, Answers, choices, questions, refusal, valid

TWICE = 2
ATTEMPTS = 150
# The proxy alone holds the certificate, and what stands behind it never sees it. A store that the proxy publishes does,
# and that is a matter of how artifacts are reached.
STRANGERS = [{"tls", "backend"}, {"tls", "artifact_store"}]
# A name is a name; and what is written for a cluster changes nothing in a stack that Compose runs.
LEFT_OUT = ("project_name", "kubernetes")
Pair = tuple[tuple[str, str], tuple[str, str]]


@dataclass(frozen=True)
class Scenario:
    """One stack to start."""

    name: str
    given: Answers  # what Copier is told; the rest are defaults
    answers: Answers  # what is then true of the stack


def pairs(answers: Answers) -> set[Pair]:
    """Return every pair of answers in these that have to do with each other."""
    found = itertools.combinations(sorted(answers.items()), 2)
    return {pair for pair in found if {pair[0][0], pair[1][0]} not in STRANGERS}


def candidates() -> list[Answers]:
    """Return every combination that renders, under either host name and prefix and without the project's name."""
    words = [{"domain": domain, "url_prefix": prefix} for domain in DOMAINS for prefix in PREFIXES]
    found = [answers | more for answers in valid() for more in words]
    found = [answers for answers in found if refusal(answers) is None]
    return [{name: value for name, value in answers.items() if name not in LEFT_OUT} for answers in found]


def defaults(purpose: str) -> Answers:
    """Return what follows from the purpose alone, by the questions' own defaults."""
    known: dict[str, Any] = {"purpose": purpose}
    wanted = candidates()[0].keys()
    for name in (name for name in questions() if name in wanted):
        default = str(questions()[name].get("default", ""))
        text = jinja2.Environment(undefined=jinja2.StrictUndefined).from_string(default).render(known).strip()
        known[name] = text == "True" if questions()[name].get("type") == "bool" else text
    del known["purpose"]
    return known


def covering(first: list[Answers], pool: list[Answers]) -> list[Answers]:
    """Return `first` and as few of `pool` as greed finds, so that every pair in `pool` is in one of them.

    Ties are decided by lot; the shortest of many draws wins, and as the draws are numbered it is always the same.
    """
    number = {pair: bit for bit, pair in enumerate(sorted(set().union(*map(pairs, pool))))}
    masks = [sum(1 << number[pair] for pair in pairs(answers)) for answers in pool]
    at_first = sum(1 << number[pair] for pair in set().union(*map(pairs, first)) & number.keys())
    shortest: list[int] = list(range(len(pool)))
    for draw in range(ATTEMPTS):
        order, missing, chosen = list(range(len(pool))), ((1 << len(number)) - 1) & ~at_first, []
        random.Random(draw).shuffle(order)
        while missing and len(chosen) < len(shortest):
            best = max(order, key=lambda index: (masks[index] & missing).bit_count())
            chosen.append(best)
            missing &= ~masks[best]
        if not missing and len(chosen) < len(shortest):
            shortest = chosen
    return [*first, *(pool[index] for index in sorted(shortest))]


def core(found: list[Scenario]) -> list[Scenario]:
    """Return the stacks that only follow a purpose and as few others as greed finds, so that every value is started."""
    chosen = [scenario for scenario in found if scenario.given.keys() == {"purpose"}]
    missing = set().union(*(scenario.answers.items() for scenario in found))
    missing -= set().union(*(scenario.answers.items() for scenario in chosen))
    while missing:
        chosen.append(max(found, key=lambda scenario: len(missing & scenario.answers.items())))
        missing -= chosen[-1].answers.items()
    return chosen


@functools.cache
def scenarios() -> list[Scenario]:
    """Return the scenarios: each purpose with nothing but its defaults, then what else the pairs need.

    It takes seconds, so a process does it once.
    """
    alone = {purpose: defaults(purpose) for purpose in choices("purpose")}
    rows = covering(list(alone.values()), candidates())
    # The purpose only sets defaults: where all is answered it is on record and changes nothing, so they take turns.
    turns = itertools.cycle(alone)
    found = []
    for count, answers in enumerate(rows, 1):
        given = {"purpose": next(turns)}
        if count <= len(alone):
            name = f"{count:02}-{given['purpose']}"
        else:
            name = f"{count:02}-{answers['backend']}-{answers['artifact_store']}-{answers['artifact_access']}"
            given |= answers
        found.append(Scenario(name, given, {"purpose": given["purpose"], **answers}))
    return found
