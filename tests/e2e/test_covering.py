"""The stacks that the end-to-end suite starts cover what they promise to cover; needs no engine."""

import itertools
from collections import Counter

import copier
import pytest
import yaml
from combinations import DOMAINS, PREFIXES, ROOT, choices, questions, refusal, valid
from covering import LEFT_OUT, STRANGERS, TWICE, candidates, core, covering, pairs, scenarios

SCENARIOS = scenarios()


def test_every_value_of_every_question_is_started_twice() -> None:
    values = {name: choices(name) for name, body in questions().items() if "choices" in body and name not in LEFT_OUT}
    values |= {"url_prefix": list(PREFIXES), "domain": list(DOMAINS)}
    count = Counter(item for scenario in SCENARIOS for item in scenario.answers.items())
    rare = [f"{name}={value!r}" for name in values for value in values[name] if count[name, value] < TWICE]
    assert not rare, rare


def test_every_run_starts_every_value() -> None:
    started = {item for scenario in core(SCENARIOS) for item in scenario.answers.items()}
    assert started == {item for scenario in SCENARIOS for item in scenario.answers.items()}
    assert len(core(SCENARIOS)) <= len(SCENARIOS) / 2


def test_every_pair_that_can_work_is_started() -> None:
    started = set().union(*(pairs(scenario.answers) for scenario in SCENARIOS))
    possible = {
        frozenset(pair)
        for answers in valid()
        for pair in itertools.combinations(((k, v) for k, v in answers.items() if k not in (*LEFT_OUT, "domain")), 2)
        if {name for name, _ in pair} not in STRANGERS
    }
    assert possible <= set(map(frozenset, started))
    assert frozenset([("backend", "managed"), ("artifact_store", "gcs")]) in possible
    assert frozenset([("reverse_proxy", "nginx"), ("tls", "self-signed")]) in possible
    assert frozenset([("backend", "sqlite"), ("artifact_store", "local")]) in possible
    assert frozenset([("artifact_store", "local"), ("artifact_access", "direct")]) not in possible


def test_only_what_can_work_is_started_and_not_more_than_needed() -> None:
    assert [scenario.name for scenario in SCENARIOS if refusal(scenario.answers)] == []
    assert len({scenario.name for scenario in SCENARIOS}) == len(SCENARIOS)
    assert len(choices("backend")) * len(choices("artifact_store")) <= len(SCENARIOS) <= 28
    assert scenarios.__wrapped__() == SCENARIOS, "the same in every run"


@pytest.mark.parametrize("purpose", choices("purpose"))
def test_each_purpose_is_started_with_nothing_but_its_defaults(purpose: str, tmp_path) -> None:
    (scenario,) = [one for one in SCENARIOS if one.given == {"purpose": purpose}]
    copier.run_copy(str(ROOT), tmp_path, data=scenario.given, defaults=True, quiet=True, vcs_ref="HEAD")
    recorded = yaml.safe_load((tmp_path / ".copier-answers.yml").read_text())
    assert {name: recorded[name] for name in scenario.answers} == scenario.answers


def test_a_new_value_would_be_started() -> None:
    new = {**candidates()[0], "artifact_store": "tape"}
    assert new in covering([], [*candidates(), new])
