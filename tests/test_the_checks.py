"""The checks themselves: each is given a stack with one planted fault and must find it."""

import copy
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import caddy_config
import compose_model
import invariants
import linters
import needs
import nginx_config
import pytest
from combinations import Answers
from rendering import Tree, read_tree

FLAGSHIP: Answers = {
    "project_name": "demo-stack",
    "backend": "postgres",
    "artifact_store": "seaweedfs",
    "artifact_access": "proxied",
    "reverse_proxy": "nginx",
    "auth": "basic",
    "tls": "none",
}


def pick(trees: list[Tree], **answers: str) -> Tree:
    """Return the one tree with the flagship's answers, but for those given."""
    wanted = FLAGSHIP | answers
    return next(tree for tree in trees if wanted.items() <= tree.answers.items())


def planted(tree: Tree, name: str, old: str, new: str) -> Tree:
    """Return the tree with `old` replaced by `new` in one file; an empty `old` appends, to a new file too."""
    text = tree.files.get(name, "")
    assert not old or old in text, f"{name} holds no {old!r}: the plant needs another place"
    changed = text.replace(old, new, 1) if old else text + new
    return replace(tree, files=tree.files | {name: changed}, modes={name: 0o644} | tree.modes)


# check, file, text to replace (empty: append), replacement, words of the fault
PLANTS = [
    (invariants.file_set, "extra.txt", "", "x\n", "nothing that was chosen needs it"),
    (invariants.file_set, "stackops/stackops/stores/azure.py", "", "x\n", "nothing that was chosen needs it"),
    (invariants.leftover_template_code, "README.md", "", "{{ project_name }}\n", "template code"),
    (invariants.leftover_template_code, "compose.yaml", "", "{% if x %}\n", "template code"),
    (invariants.leftover_template_code, ".github/workflows/ci.yml", "", "${{ '{{ x }}' }}\n", "template code"),
    (invariants.leftover_template_code, "Makefile", "", "{# note #}\n", "template code"),
    (invariants.untidy_text, "compose.yaml", "\nservices:", "\n\nservices:", "two blank lines"),
    (invariants.untidy_text, "README.md", "", "\n", "one newline"),
    (invariants.untidy_text, "NOTES.md", ".\n", ". \n", "blanks at its end"),
    (invariants.untidy_text, "scripts/up.sh", "\n", "\r\n", "carriage return"),
    (invariants.untidy_text, "Makefile", "", "x\udcff\n", "not UTF-8"),
    (invariants.untidy_text, "compose.yaml", "  mlflow:", "\tmlflow:", "starts with a tab"),
    (invariants.untidy_text, "object-store/x.yaml", "", "a:\n   b: 1\n", "is indented by 3"),
    (invariants.secret_literals, "compose.yaml", "", "      DB_PASSWORD: hunter2hunter2\n", "a password in a line"),
    (invariants.secret_literals, "README.md", "", "http://admin:hunter2@localhost\n", "a password in a URL"),
    (invariants.secret_literals, ".env.example", "", "#X=AKIAIOSFODNN7EXAMPLE\n", "an AWS key"),
    (invariants.secret_literals, "scripts/init.sh", "", "-----BEGIN RSA PRIVATE KEY-----\n", "a private key"),
    (invariants.words_of_other_choices, "README.md", "", "or MinIO\n", "names MinIO"),
    (invariants.words_of_other_choices, "README.md", "", "Azure\n", "names Azure"),
    (invariants.words_of_other_choices, "README.md", "", "sqlite\n", "names sqlite"),
    (invariants.words_of_other_choices, "scripts/up.sh", "", "# gs://bucket\n", "names Google"),
    (invariants.words_of_other_choices, "Makefile", "", "# make local\n", "names make local"),
    (invariants.words_of_other_choices, "minio/x", "", "x\n", "names MinIO"),
    (invariants.words_of_other_choices, ".env.example", "", "#STORE_PORT=1\n", "names a way into our store"),
    (invariants.compose_declarations, "compose.yaml", "  mlflow-spool:\n", "  other:\n", "used and not declared"),
    (invariants.compose_declarations, "compose.yaml", "\nvolumes:\n", "\nvolumes:\n  x:\n", "declared and not used"),
    (invariants.compose_declarations, "compose.yaml", "    - htpasswd\n", "", "declared and not used"),
    (invariants.compose_declarations, "compose.yaml", "postgres: {condition", "pg: {condition", "does not exist"),
    (invariants.compose_declarations, "compose.yaml", "services:", "x-work: &work {}\n\nservices:", "anchor work"),
    (invariants.settings, ".env.example", "#HTTP_PORT=8080", "#HTTP_PORT=8081", "the default in compose.yaml"),
    (invariants.settings, ".env.example", "#HTTP_PORT=8080\n", "", "is missing"),
    (invariants.settings, ".env.example", "", "\n# Not needed.\n#UNUSED=1\n", "is used nowhere"),
    (invariants.settings, ".env.example", "", "\n#NGINX_TIMEOUT=3600s\n", "is there twice"),
    (invariants.settings, ".env.example", "STACK_UID=", "#STACK_UID=", "must copy it"),
    (invariants.settings, ".env.example", "# Where the stack answers on this machine.\n", "", "is not explained"),
    (invariants.settings, "compose.yaml", "${NGINX_TIMEOUT:-3600s}", "${NGINX_WAIT:-3600s}", "NGINX_WAIT"),
    (invariants.makefile_targets, "README.md", "", "\nRun `make brew`.\n", "'make brew', which does not exist"),
    (invariants.makefile_targets, "Makefile", "", "brew:\n\ttrue\n", "no line of help"),
    (invariants.makefile_targets, "Makefile", "down: ##", "down: #", "no line of help"),
    (invariants.makefile_targets, "Makefile", "scripts/lint.sh", "scripts/tidy.sh", "scripts/tidy.sh does not exist"),
    (invariants.makefile_targets, "README.md", "`make status`", "`make up`", "does not name 'make status'"),
    (invariants.readme_names, "README.md", "", "See `scripts/none.sh`.\n", "there is no scripts/none.sh"),
    (invariants.readme_names, "README.md", "", "See `secrets/none`.\n", "there is no secrets/none"),
    (invariants.readme_names, "README.md", "", "See `demo-stack_none`.\n", "there is no volume"),
    (invariants.readme_names, "README.md", "", "Set `NO_SUCH_THING`.\n", "is no setting"),
    (invariants.readme_names, "README.md", "    mlflow[", "    server[", "joins mlflow"),
    (invariants.readme_names, "README.md", "    mlflow[", "    alone[x]\n    mlflow[", "leaves alone alone"),
    (invariants.broken_links, "README.md", "", "[x](none.md)\n", "links to none.md"),
    (invariants.broken_links, "NOTES.md", "", "[x](#none)\n", "no such heading"),
    (invariants.parses, "x.json", "", "{\n", "cannot be read"),
    (invariants.parses, "stackops/pyproject.toml", "", "x\n", "cannot be read"),
    (invariants.parses, "compose.yaml", "", "x: [\n", "cannot be read"),
    (invariants.parses, ".editorconfig", "", "[*]\n[*]\n", "cannot be read"),
    (invariants.parses, "stackops/stackops/cli.py", "", "if:\n", "cannot be read"),
    (invariants.executables, "README.md", "# demo-stack", "#!/bin/sh", "cannot be run"),
    (invariants.executables, "scripts/up.sh", "#!", "#", "is no script"),
    (invariants.loader_variables, "pgloader/migration.load", "{{DB_HOST}}", "{{DB_ADDRESS}}", "DB_ADDRESS"),
    (invariants.dockerfiles, "mlflow/Dockerfile", "FROM ${PYTHON_IMAGE}\n", "FROM python:3.13\n", "is no variable"),
    (invariants.dockerfiles, "mlflow/Dockerfile", "", "USER root\n", "numeric user"),
    (invariants.dockerfiles, "mlflow/Dockerfile", "", "# syntax=docker/dockerfile:1\n", "frontend image"),
    (invariants.dockerfiles, "mlflow/Dockerfile", "", "CMD stackops serve\n", "SIGTERM"),
    (invariants.dockerfiles, "mlflow/Dockerfile", "", "ARG DB_PASSWORD\n", "would stay in the image"),
    (invariants.dockerfiles, "mlflow/Dockerfile", "--require-hashes -r /requirements/base.txt", "x", "without asking"),
    (invariants.dockerfiles, ".dockerignore", "", "!secrets\n", "sees more than it needs"),
    (invariants.answers_file, ".copier-answers.yml", "", "mlflow_version: 3.17.2\n", "keeps mlflow_version"),
    (invariants.answers_file, ".copier-answers.yml", "", "purpose: 1.2.3\n", "a version or a secret"),
    (invariants.answers_file, ".copier-answers.yml", "backend: postgres", "backend: sqlite", "'postgres' was given"),
]


@pytest.mark.parametrize(
    ("check", "name", "old", "new", "words"), PLANTS, ids=[f"{plant[0].__name__}-{plant[4]}" for plant in PLANTS]
)
def test_invariant_finds(
    trees: list[Tree], check: Callable[[Tree], list[str]], name: str, old: str, new: str, words: str
) -> None:
    """The planted fault is found, and it was not there before."""
    tree = pick(trees)
    before = check(tree)
    after = [fault for fault in check(planted(tree, name, old, new)) if fault not in before]
    assert any(words in fault for fault in after), after


def test_every_invariant_has_a_plant() -> None:
    """A new check needs a plant."""
    assert {plant[0] for plant in PLANTS} == set(invariants.CHECKS)


def test_a_word_is_found_in_each_part(trees: list[Tree]) -> None:
    """Every list of words matches something where its part was chosen, so none of them is misspelt."""
    for part, (is_chosen, _) in invariants.WORDS.items():
        chosen = [tree for tree in trees if is_chosen(tree.answers)]
        hits = [
            tree
            for tree in chosen
            if any(part == named for name, text in tree.files.items() for named, _ in invariants._named(name, text))
        ]
        assert chosen and len(hits) == len(chosen), part


@pytest.fixture(scope="module")
def flagship_model(trees: list[Tree], tmp_path_factory: pytest.TempPathFactory) -> compose_model.Model:
    """The flagship as Compose understands it."""
    needs.compose()
    return compose_model.parse(pick(trees), tmp_path_factory.mktemp("env"))


def change(path: str, value: Any) -> Callable[[compose_model.Model], None]:
    """Return a function that sets `a.b.c` of a model to a value, or deletes it where the value is None."""

    def apply(model: compose_model.Model) -> None:
        *folders, last = path.split(".")
        for folder in folders:
            model = model.setdefault(folder, {})
        if value is None:
            del model[last]
        else:
            model[last] = value

    return apply


PORT = {"target": 1, "published": "1", "host_ip": "127.0.0.1"}
MODEL_PLANTS = [
    ("services.mlflow.user", "0:0", "user is"),
    ("services.postgres.read_only", None, "read_only is"),
    ("services.nginx.cap_drop", None, "cap_drop is"),
    ("services.nginx.security_opt", [], "security_opt is"),
    ("services.mlflow.init", False, "init is"),
    ("services.mlflow.mem_limit", None, "mem_limit is not limited"),
    ("services.mlflow.pids_limit", None, "pids_limit is not limited"),
    ("services.mlflow.logging", {"driver": "json-file"}, "grow for ever"),
    ("services.mlflow.privileged", True, "uses privileged"),
    ("services.mlflow.pull_policy", "always", "uses pull_policy"),
    ("services.nginx.image", "nginx:latest", "is not pinned"),
    ("services.nginx.image", "nginx", "is not pinned"),
    ("services.mlflow.build.args", {}, "no variable of .env can replace"),
    ("services.mlflow.environment.DB_PASSWORD", "x", "'docker inspect' shows it"),
    ("services.mlflow.environment.X", "postgresql+psycopg2://h/d", "a database URI"),
    ("services.mlflow.environment.X", "http://a:b@h/", "or a password"),
    ("services.postgres.environment.POSTGRES_PASSWORD_FILE", "/tmp/x", "no secret's file"),
    ("services.postgres.command", ["postgres", "--password=x"], "command line holds a secret"),
    ("services.nginx.tmpfs", [], "has no /tmp"),
    ("services.nginx.volumes", [{"type": "bind", "source": "/x"}], "can write to /x"),
    ("services.nginx.restart", "always", "restart is"),
    ("services.mlflow.healthcheck", None, "no health check"),
    ("services.mlflow.healthcheck.start_interval", "1s", "newer than 24"),
    ("services.mlflow.healthcheck.start_period", None, "has no start_period"),
    ("services.migrate.healthcheck", {"test": ["CMD"]}, "a job with a health check"),
    ("services.nginx.secrets", [{"source": "postgres_password"}], "can read the secret postgres_password"),
    ("services.mlflow.secrets", [{"source": "admin_password"}], "can read the secret admin_password"),
    ("services.postgres.ports", [PORT], "postgres: publishes port"),
    ("services.nginx.ports", [PORT | {"host_ip": "0.0.0.0"}], "beyond this machine"),
    ("services.nginx.ports", [], "publishes no port"),
    ("networks.data.internal", False, "not internal"),
    ("services.postgres.networks", {"data": None, "edge": None}, "is on the networks"),
    ("services.nginx.networks", {"data": None, "edge": None}, "is on the networks"),
    ("services.check.network_mode", None, "check: is on the stack's networks"),
    ("services.mlflow.network_mode", "host", "network_mode is host"),
    ("services.mlflow.environment.STACK_AUTH", "none", "STACK_AUTH is"),
    ("services.mlflow.environment.MLFLOW_SERVER_ALLOWED_HOSTS", "*", "answers to every host"),
    ("services.mlflow.environment.MLFLOW_SERVER_CORS_ALLOWED_ORIGINS", "http://x", "are refused"),
    ("services.mlflow.environment.ARTIFACT_URI", "/data", "ARTIFACT_URI is"),
    ("services.check.environment.MLFLOW_TRACKING_URI", "http://mlflow:5000", "looks for the server"),
]


@pytest.mark.parametrize(("path", "value", "words"), MODEL_PLANTS, ids=[f"{p[0]}-{p[2]}" for p in MODEL_PLANTS])
def test_the_model_check_finds(
    trees: list[Tree], flagship_model: compose_model.Model, path: str, value: Any, words: str
) -> None:
    """The planted fault is found in Compose's model, and it was not there before."""
    answers, model = pick(trees).answers, copy.deepcopy(flagship_model)
    assert compose_model.model_faults(model, answers) == []
    change(path, value)(model)
    assert any(words in fault for fault in compose_model.model_faults(model, answers))


@pytest.fixture
def broken(trees: list[Tree], tmp_path: Path) -> Callable[..., Tree]:
    """Write the flagship to disk with one planted fault and read it back."""

    def run(name: str, old: str, new: str, **answers: str) -> Tree:
        tree = planted(pick(trees, **answers), name, old, new)
        for path, text in tree.files.items():
            (tmp_path / "stack" / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "stack" / path).write_text(text)
        return read_tree(tmp_path / "stack", tree.answers)

    return run


@pytest.mark.parametrize(
    ("lint", "name", "old", "new", "words"),
    [
        (linters.yamllint_faults, "compose.yaml", "read_only: true", "read_only: yes", "truthy"),
        (linters.hadolint_faults, "mlflow/Dockerfile", "FROM ${PYTHON_IMAGE}\n", "FROM python:latest\n", "DL3007"),
        (linters.shellcheck_faults, "scripts/up.sh", "", "rm $x\n", "SC2086"),
        (linters.shfmt_faults, "scripts/up.sh", "", "if true; then\n      :\nfi\n", "up.sh"),
        (linters.ruff_faults, "stackops/stackops/cli.py", "", "x=1\n", "cli.py"),
        (linters.workflow_faults, ".github/workflows/ci.yml", "runs-on:", "runs_on:", "runs-on"),
        (linters.renovate_faults, "renovate.json", '["copier", "pip_requirements"]', '"copier"', "array"),
        (linters.hook_faults, ".pre-commit-config.yaml", "- id:", "- idea:", "id"),
        (linters.make_faults, "Makefile", "\tdocker compose ps --all\n", "    docker compose ps --all\n", "separator"),
        (linters.make_faults, "Makefile", "up: init", "up: start", "No rule to make target"),
        (linters.python_compiles, "stackops/stackops/cli.py", "", "type X = int\n", "cli.py"),
    ],
)
def test_tool_finds(
    broken: Callable[..., Tree], lint: Callable[..., Any], name: str, old: str, new: str, words: str
) -> None:
    """The real tools are really run, and their complaints arrive."""
    assert any(words in fault for _, fault in lint([broken(name, old, new)]))


@pytest.mark.parametrize(
    ("name", "text", "hook"),
    [
        ("NOTES.md", "x ", "trailing-whitespace"),
        ("NOTES.md", "x", "end-of-file-fixer"),
        ("compose.yaml", "x: [\n", "check-yaml"),
        ("NOTES.md", "-----BEGIN RSA PRIVATE KEY-----\n", "detect-private-key"),
        ("NOTES.md", "<<<<<<< before\n", "check-merge-conflict"),
    ],
)
def test_the_hooks_find(broken: Callable[..., Tree], tmp_path: Path, name: str, text: str, hook: str) -> None:
    """So are the hooks of pre-commit."""
    (scratch := tmp_path / "scratch").mkdir()
    assert any(hook in fault for _, fault in linters.precommit_faults([broken(name, "", text)], scratch))


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("listen 8080;", "listen 8080", "invalid parameter"),
        ("proxy_buffering off;", "proxy_bufering off;", "unknown directive"),
        ("${NGINX_TIMEOUT}", "${NGINX_NO_SUCH}", "invalid value"),
    ],
)
def test_nginx_finds(
    broken: Callable[..., Tree],
    flagship_model: compose_model.Model,
    tmp_path: Path,
    old: str,
    new: str,
    words: str,
) -> None:
    """nginx is really asked."""
    needs.engine()
    tree = broken("nginx/templates/mlflow.conf.template", old, new)
    faults = nginx_config.nginx_faults([(tree, flagship_model)], tmp_path / "cases")
    assert any(words in fault for _, fault in faults), [fault for _, fault in faults]


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("\tadmin off", "  admin off", "would change it"),
        ("flush_interval", "flash_interval", "flash_interval"),
        ("dial_timeout 2s", "dial_timeout soon", "soon"),
    ],
)
def test_caddy_finds(
    trees: list[Tree], broken: Callable[..., Tree], tmp_path: Path, old: str, new: str, words: str
) -> None:
    """Caddy is really asked."""
    needs.engine()
    tree = broken("caddy/Caddyfile", old, new, reverse_proxy="caddy")
    model = compose_model.parse(tree, tmp_path)
    faults = caddy_config.caddy_faults([(tree, model)], tmp_path / "scratch")
    assert any(words in fault for _, fault in faults), [fault for _, fault in faults]


def test_compose_finds(broken: Callable[..., Tree], tmp_path: Path) -> None:
    """Compose's own complaints, and its warnings, are errors."""
    needs.compose()
    with pytest.raises(RuntimeError, match="undefined"):
        compose_model.parse(broken("compose.yaml", "  mlflow-spool:\n", ""), tmp_path)


def test_no_container_is_left() -> None:
    """What these tests start, they remove."""
    needs.engine()
    command = ["docker", "ps", "--all", "--quiet", "--filter", "name=^mlflow-stack-test-(nginx|caddy)-"]
    assert subprocess.run(command, check=True, capture_output=True, text=True).stdout == ""
