"""The table that decides which file exists when, and what keeps `--trust` away."""

import itertools
import re
from pathlib import Path

import pytest
from combinations import ROOT, Answers, choices, every_product, questions, settings
from rendering import Tree, read_tree, render

OPTIONAL = ("backups", "monitoring", "kubernetes")
ROWS = settings()["_exclude"]
ROW = re.compile(r"\{% if (not )?(\w+)(?: \| default\((?:true|\w+)\))? %\}(/[^{}]+)\{% endif %\}")


def sources(template: Path) -> set[str]:
    """Return the paths that the files of template/ get in a stack."""
    folder = template / "template"
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    return {
        name.removesuffix(".jinja").replace("{{ _copier_conf.answers_file }}", ".copier-answers.yml") for name in names
    }


@pytest.mark.parametrize("row", ROWS)
def test_every_row_bites(row: str, trees: list[Tree], template: Path) -> None:
    """What a row names is in the template, missing from at least one combination, and there in at least one."""
    match = ROW.fullmatch(row)
    assert match, "a row is '{% if [not] FLAG %}/path{% endif %}', without a slash at its end"
    assert not match[3].endswith("/"), "a slash at the end leaves an empty folder behind"
    named = _named_by(row, template)
    assert named, "names nothing in template/"
    # Of a folder, what rows of its own name need not be there together.
    within = [other for other in ROWS if ROW.fullmatch(other)[3].startswith(match[3] + "/")]
    rest = named.difference(*(_named_by(other, template) for other in within))
    assert any(rest <= set(tree.files) for tree in trees), "is never there"
    assert any(not named & set(tree.files) for tree in trees), "is always there"


def _named_by(row: str, template: Path) -> set[str]:
    """Return the files that a row names."""
    pattern = ROW.fullmatch(row)[3].removeprefix("/")
    expression = re.compile(re.escape(pattern).replace(r"\*", "[^/]*") + "(/.*)?")
    return {name for name in sources(template) if expression.fullmatch(name)}


def test_rows_speak_in_computed_flags() -> None:
    """Which answer means what is decided once, in questions/derived.yml; no row is there twice."""
    flags = {match[2] for row in ROWS if (match := ROW.fullmatch(row))}
    assert flags <= {name for name, body in questions().items() if body.get("when") is False and body["type"] == "bool"}
    assert len(ROWS) == len(set(ROWS))


def test_every_file_appears_somewhere(template: Path, trees: list[Tree]) -> None:
    """No file of template/ is dead, and no stack has a file from elsewhere."""
    rendered = {name for tree in trees for name in tree.files}
    assert rendered == sources(template)


def test_no_empty_folder(trees: list[Tree]) -> None:
    """A part that is not there leaves no folder behind."""
    empty = {
        f"{tree.name}: {path.relative_to(tree.root)}"
        for tree in trees
        for path in tree.root.rglob("*")
        if path.is_dir() and not any(path.iterdir())
    }
    assert not empty


def test_no_conditional_file_name(template: Path) -> None:
    """File names are plain, so that editors and linters see them and every system can check them out."""
    for path in (template / "template").rglob("*"):
        if path.name != "{{ _copier_conf.answers_file }}.jinja":
            assert re.fullmatch(r"[\w.-]+", path.name), path


def test_nothing_needs_trust() -> None:
    """No task, no migration, no Python: `copier copy` and `copier update` never ask for --trust."""
    forbidden = {"_tasks", "_migrations", "_jinja_extensions", "_external_data", "_secret_questions"}
    assert not forbidden & settings().keys()
    assert not [name for name, body in questions().items() if body.get("secret")]
    extensions = {path.name for path in (ROOT / "extensions").rglob("*") if path.is_file()}
    assert extensions and all(name.endswith((".jinja", ".yml")) for name in extensions), extensions


def test_included_files_hold_one_document_each() -> None:
    """pytest-copie, which owners of forks may use, cannot read an included file with several."""
    for path in (ROOT / "extensions" / "questions").glob("*.yml"):
        assert not re.search(r"(?m)^---", path.read_text()), path


def test_every_choice_changes_the_stack(trees: list[Tree]) -> None:
    """No value of a choice is dead: exchanging it for another changes what is rendered, not only the answers."""
    by_answers = {_key(tree.answers): tree for tree in trees}
    for question in ("backend", "artifact_store", "artifact_access", "reverse_proxy", "auth", "tls"):
        for one, other in itertools.combinations(choices(question), 2):
            pairs = [
                (by_answers.get(_key(answers | {question: one})), by_answers.get(_key(answers | {question: other})))
                for answers in every_product()
            ]
            # Of two that differ in an optional part as well, it would be that part that makes the difference.
            both = [(a, b) for a, b in pairs if a and b and all(a.answers[n] == b.answers[n] for n in OPTIONAL)]
            assert both, (question, one, other)
            assert all(_without_answers(a) != _without_answers(b) for a, b in both), (question, one, other)


def _key(answers: Answers) -> tuple[tuple[str, str], ...]:
    """The domain and the optional parts follow from the name of a combination, so they are no part of the key."""
    return tuple(sorted((name, value) for name, value in answers.items() if name not in ("domain", *OPTIONAL)))


def _without_answers(tree: Tree) -> dict[str, str]:
    return {name: text for name, text in tree.files.items() if name != ".copier-answers.yml"}


def test_purpose_is_only_a_default(template: Path, tmp_path: Path, trees: list[Tree]) -> None:
    """With the same answers, the purpose changes nothing but its own line."""
    for purpose in choices("purpose"):
        answers = trees[-1].answers | {"purpose": purpose}
        tree = read_tree(render(template, tmp_path / purpose / "demo-stack", answers), answers)
        assert _without_answers(tree) == _without_answers(trees[-1])
