"""Tests that take long and watch over few files: they run when one of those has changed since the last release.

Which files those are stands in the table here, or with one of many values of a test, in its mark `watches`.
`make test-all` (pytest --everything) runs them whatever has changed, and with them what is marked `full`: the same test
with other values. It takes hours, so what has passed is kept in build/passed.json, with a digest of the files that the
test watches over: the next `make test-all` goes on from there, and `make release` asks for all of them.
They are left out, not skipped: the summary of a run says which.
"""

import fnmatch
import functools
import hashlib
import json
import os
import re
import subprocess
from collections.abc import Iterable

import pytest
from combinations import ROOT

# Test files (or single tests) -> what they watch over; `*` also matches slashes.
WATCHED: dict[str, tuple[str, ...]] = {
    "tests/migrate/": (
        "template/stackops/stackops/migrat*",
        "template/stackops/stackops/movein.py",
        "template/stackops/stackops/artifact_uris.py",
        "template/stackops/stackops/backends/*",
        "template/stackops/stackops/prove.py",
        "template/scripts/migrate.sh.jinja",
        "template/pgloader/*",
        "extensions/compose/pgloader.yaml.jinja",
        "tests/clients/*",
    ),
    "tests/e2e/test_journeys.py": (
        "docs/journeys/*",
        "tests/e2e/journeys.py",
        "tests/e2e/inventory.py",
        "template/stackops/stackops/migrat*",
        "template/stackops/stackops/movein.py",
        "template/stackops/stackops/artifact_uris.py",
        "template/stackops/stackops/prove.py",
        "template/transfer/*",
        "template/scripts/migrate.sh.jinja",
        "template/scripts/artifacts-move.sh.jinja",
        "template/scripts/other-stack.sh.jinja",
    ),
    "tests/e2e/test_runbooks.py": (
        "docs/runbooks/*",
        "tests/e2e/journeys.py",
        *(f"template/stackops/stackops/{name}.py" for name in ("backup", "backups", "restore", "upgrade", "gc", "cli")),
        "template/stackops/stackops/saving/*",
        "template/stackops/stackops/diagnosis/*",
        *(
            f"template/scripts/{name}"
            for name in ("backup*", "restore*", "upgrade.sh*", "rolling*", "gc.sh", "init*", "lost*", "up.sh*")
        ),
    ),
    "tests/e2e/test_artifacts_move.py": (
        "template/transfer/*",
        "template/scripts/artifacts-move.sh.jinja",
        "template/stackops/stackops/artifact_uris.py",
        "extensions/compose/artifacts-move.yaml.jinja",
    ),
    "tests/e2e/test_running_stack.py": (
        "template/scripts/up.sh.jinja",
        "template/scripts/update.sh",
        "template/nginx/*",
        "extensions/compose/*",
        "tests/updates.py",
    ),
    "tests/e2e/test_upgrade.py": (
        "template/stackops/stackops/upgrade.py",
        "template/stackops/stackops/schema.py",
        "template/stackops/stackops/prepare.py",
        "template/stackops/stackops/backends/*",
        "template/stackops/stackops/saving/*",
        "template/scripts/upgrade.sh.jinja",
        "template/scripts/lock.sh",
        "template/scripts/up.sh.jinja",
    ),
    "tests/e2e/test_upgrade_postgres.py": (
        "template/postgres/*",
        "template/scripts/upgrade-postgres.sh.jinja",
        "template/scripts/upgrade.sh.jinja",
        "template/scripts/lock.sh",
        "extensions/compose/postgres.yaml.jinja",
    ),
    "tests/e2e/test_gc.py": (
        "template/stackops/stackops/gc.py",
        "template/stackops/stackops/cleaning/*",
        "template/scripts/gc.sh",
    ),
    "tests/e2e/test_size.py": (
        "template/stackops/stackops/size.py",
        "template/stackops/stackops/sizing.py",
        "template/scripts/siz*",
        "extensions/compose/postgres.yaml.jinja",
    ),
    "tests/e2e/test_bench.py": (
        "template/stackops/stackops/bench*",
        "template/stackops/stackops/check.py",
        "template/stackops/stackops/cleaning/*",
        "template/scripts/bench.sh.jinja",
        "template/scripts/lock.sh",
        "extensions/compose/check.yaml.jinja",
    ),
    "tests/e2e/test_logs.py": (
        "template/stackops/stackops/access.py",
        "template/stackops/stackops/guard.py",
        "template/scripts/logs.sh.jinja",
        "template/nginx/*",
        "template/caddy/*",
    ),
    "tests/e2e/test_apiserver.py": (
        "template/k8s/*",
        "template/scripts/k8s.sh.jinja",
        "extensions/kubernetes/*",
        "tests/kubernetes_model.py",
        "tests/e2e/apiserver.py",
    ),
    "tests/e2e/test_pods.py": (
        "template/k8s/*",
        "template/scripts/k8s.sh.jinja",
        "template/nginx/*",
        "extensions/kubernetes/*",
        *(f"template/stackops/stackops/{name}.py" for name in ("prepare", "ready", "serve", "settings")),
        "template/stackops/stackops/backends/*",
        "tests/kubernetes_model.py",
    ),
    "tests/e2e/test_monitoring.py": (
        "template/monitoring/*",
        "template/stackops/stackops/watching/*",
        *(f"template/stackops/stackops/{name}.py" for name in ("counting", "metrics", "ready", "schedule")),
        "template/postgres/statistics.sh",
        "template/nginx/*",
        "template/caddy/*",
        "extensions/compose/watching.yaml.jinja",
        "extensions/compose/postgres.yaml.jinja",
        "extensions/compose/minio.yaml.jinja",
        "extensions/compose/seaweedfs.yaml.jinja",
    ),
    "tests/e2e/test_backup_faults.py": (
        *(f"template/stackops/stackops/{name}.py" for name in ("backup", "backups", "restore", "schedule")),
        "template/stackops/stackops/saving/*",
        "template/stackops/stackops/artifact_uris.py",
        "template/transfer/*",
        *(f"template/scripts/{name}" for name in ("backup*", "restore*", "lock.sh")),
        "extensions/compose/backup.yaml.jinja",
        "tests/e2e/saving.py",
    ),
    "tests/e2e/test_every_store.py": (
        *(f"template/stackops/stackops/{name}.py" for name in ("backup", "restore", "upgrade", "schema", "prepare")),
        "template/stackops/stackops/saving/*",
        "template/stackops/stackops/backends/*",
        "template/stackops/stackops/stores/*",
        "template/transfer/*",
        *(f"template/scripts/{name}" for name in ("backup*", "restore*", "upgrade.sh*")),
        "extensions/compose/backup.yaml.jinja",
        "tests/e2e/saving.py",
    ),
    "tests/e2e/test_access_switch.py": (
        "template/stackops/stackops/artifact_uris.py",
        "template/stackops/stackops/prepare.py",
        "template/scripts/init.sh.jinja",
        "extensions/compose/seaweedfs.yaml.jinja",
    ),
    "tests/e2e/test_users.py": (
        *(f"template/stackops/stackops/{name}.py" for name in ("user", "limiter", "htpasswd", "login")),
        *(f"template/stackops/stackops/{name}.py" for name in ("accounts", "guard", "grant", "app", "settings")),
        "template/scripts/users.sh.jinja",
        "template/nginx/*",
        "template/caddy/*",
        "extensions/compose/*",
    ),
    "tests/e2e/test_rotate_secrets.py": (
        "template/stackops/stackops/rotat*",
        "template/stackops/stackops/doctor.py",
        "template/stackops/stackops/diagnosis/*",
        "template/scripts/rotate-secrets.sh.jinja",
        "template/scripts/doctor.sh.jinja",
        "template/scripts/init.sh.jinja",
        "template/object-store/init.sh.jinja",
        "extensions/questions/derived.yml",
    ),
    "tests/e2e/test_attacks.py": (
        "tests/e2e/attacks.py",
        "template/stackops/stackops/*",
        "template/nginx/*",
        "template/caddy/*",
        "template/compose.yaml.jinja",
        "extensions/compose/*",
        "extensions/questions/access.yml",
    ),
    "tests/e2e/test_oidc.py": (
        "template/stackops/stackops/sso.py",
        "template/stackops/stackops/token.py",
        "template/stackops/stackops/accounts.py",
        "template/stackops/stackops/app.py",
        "template/scripts/token.sh",
        "template/nginx/*",
        "extensions/compose/oauth2-proxy.yaml.jinja",
        "extensions/compose/nginx.yaml.jinja",
    ),
    "tests/e2e/test_calls_nobody.py": (
        "template/stackops/stackops/settings.py",
        "template/stackops/stackops/check.py",
        "extensions/compose/*",
        "tests/e2e/names.py",
    ),
    "tests/e2e/test_jobs.py": (
        *(f"template/stackops/stackops/{name}.py" for name in ("app", "preload", "serve", "settings")),
        "extensions/compose/mlflow.yaml.jinja",
    ),
    "tests/e2e/test_overload.py": (
        *(
            f"template/stackops/stackops/{name}.py"
            for name in ("app", "balance", "bridge", "failures", "preload", "serve", "sessions", "settings", "sizing")
        ),
        "template/stackops/stackops/backends/*",
        "template/scripts/sizing.sh*",
        "template/nginx/*",
    ),
    "tests/e2e/test_replicas.py": (
        *(f"template/stackops/stackops/{name}.py" for name in ("balance", "preload", "serve", "settings", "sizing")),
        *(f"template/stackops/stackops/{name}.py" for name in ("accounts", "guard", "ready", "size", "upgrade")),
        "template/stackops/stackops/watching/*",
        "template/stackops/stackops/backends/postgres.py",
        *(f"template/scripts/{name}.sh.jinja" for name in ("rolling", "restart", "upgrade", "up", "size")),
        "template/nginx/*",
        "template/caddy/*",
        "extensions/compose/mlflow*",
    ),
    "tests/e2e/test_read_replica.py": (
        *(f"template/stackops/stackops/{name}.py" for name in ("preload", "schema", "serve")),
        "template/stackops/stackops/backends/postgres.py",
        "extensions/compose/mlflow*",
    ),
    "tests/e2e/test_outside.py": ("tests/e2e/outside.py",),
    "tests/e2e/test_nginx_fork.py": ("template/nginx/*", "extensions/compose/nginx.yaml.jinja"),
    "tests/e2e/test_big_files.py::test_2_gib": (
        "template/stackops/stackops/app.py",
        "template/stackops/stackops/bridge.py",
        "template/stackops/stackops/stores/*",
        "template/nginx/*",
        "template/caddy/*",
    ),
}
# Tests that need a program which takes long to build: where it would be, and the variable that names another.
# `PYTHONPATH=tests .venv/bin/python tests/e2e/apiserver.py` builds this one.
BUILT = {"tests/e2e/test_apiserver.py": ("build/kube-apiserver-*", "KUBE_APISERVER")}
# Files whose tests go on where the one before has ended: all of them run, or none.
IN_ORDER = ("tests/e2e/test_pods.py",)
# A change of these may break any of them.
ALWAYS = ("template/mlflow/requirements/*", "extensions/data/versions.yml", "template/mlflow/Dockerfile.jinja")
# What a test watches over that is marked `full` and has no files of its own.
ANYTHING = ("template/*", "extensions/*", "copier.yml")
PASSED = ROOT / "build" / "passed.json"
SEEN = "files"  # the property of a test under which its report has the digest


def releases() -> dict[str, str]:
    """Return commit by version, newest first, found by the message: tags may not travel with a clone."""
    lines = _git("log", "--format=%H %s").splitlines()
    found = (re.fullmatch(r"(\w+) Release (v\d+\.\d+\.\d+)", line) for line in lines)
    return {match[2]: match[1] for match in found if match}


def changed() -> set[str] | None:
    """Return the files that differ from the last release, or None where no release is known."""
    if not (known := releases()):
        return None
    names = _git("diff", "--name-only", next(iter(known.values()))) + _git("ls-files", "--others", "--exclude-standard")
    return set(names.splitlines())


def watched(test: str, *marked: str) -> tuple[str, ...]:
    """Return the patterns of the files that a test watches over, with its mark's; none of a test that always runs."""
    own = [pattern for part, patterns in WATCHED.items() if test.startswith(part) for pattern in patterns]
    return (*ALWAYS, *own, *marked) if own or marked else ()


def concerning(test: str, names: Iterable[str], patterns: Iterable[str]) -> list[str]:
    """Return which of these files are the test's own, or match one of the patterns."""
    own = tuple(part.split("::")[0] for part in WATCHED if test.startswith(part)) or (test.split("::")[0],)
    match = re.compile("|".join(fnmatch.translate(pattern) for pattern in patterns)).match
    return [name for name in names if name.startswith(own) or match(name)]


def wanted(test: str, files: Iterable[str] | None, *marked: str) -> bool:
    """Return whether a test, with its mark's patterns, runs when these files have changed (None: nobody knows)."""
    patterns = watched(test, *marked)
    return not patterns or files is None or bool(concerning(test, files, patterns))


def is_built(test: str) -> bool:
    """Return whether the program that a test needs has been built."""
    return all(
        name in os.environ or any(ROOT.glob(pattern))
        for part, (pattern, name) in BUILT.items()
        if test.startswith(part)
    )


def passed() -> dict[str, str]:
    """Return the long tests that have passed here, each with the digest of what it watched over."""
    return json.loads(PASSED.read_text()) if PASSED.exists() else {}


def note(test: str, digest: str | None) -> None:
    """Keep that a test has passed on files with this digest, or that it has not (None)."""
    if (known := passed()).get(test) == digest:
        return
    kept = {name: seen for name, seen in {**known, test: digest}.items() if seen}
    PASSED.parent.mkdir(exist_ok=True)
    draft = PASSED.with_suffix(f".{os.getpid()}")
    draft.write_text(json.dumps(kept, indent=0, sort_keys=True) + "\n")
    draft.replace(PASSED)


def contents() -> dict[str, str]:
    """Return the digest of each file that git has or would add."""
    names = _git("ls-files", "--cached", "--others", "--exclude-standard").splitlines()
    return {name: hashlib.sha256((ROOT / name).read_bytes()).hexdigest() for name in names if (ROOT / name).is_file()}


def leave_out(config: pytest.Config, items: list[pytest.Item]) -> list[str]:
    """Take from `items` what need not run, and mark those that are long. Return which files lost tests."""
    everything = config.getoption("--everything")
    done = {} if config.getoption("--golden-update") else passed()  # what is written anew is looked at anew
    files, since = contents(), changed()

    @functools.cache
    def digest(test: str, patterns: tuple[str, ...]) -> str:
        found = sorted(f"{name} {files[name]}" for name in concerning(test, files, patterns))
        return hashlib.sha256("\n".join(found).encode()).hexdigest()[:16]

    def is_out(item: pytest.Item) -> bool:
        full, marked = item.get_closest_marker("full") is not None, _marked(item)
        if patterns := watched(item.nodeid, *marked) or ANYTHING * full:
            seen = digest(item.nodeid.split("[")[0], patterns)
            item.add_marker(pytest.mark.long)
            item.user_properties.append((SEEN, seen))
            if done.get(item.nodeid) == seen if everything else full or not wanted(item.nodeid, since, *marked):
                return True
        return not (is_built(item.nodeid) or config.option.collectonly)

    out = [item for item in items if is_out(item)]
    whole = {file for item in items if item not in out and (file := item.nodeid.split("::")[0]) in IN_ORDER}
    if out := [item for item in out if item.nodeid.split("::")[0] not in whole]:
        items[:] = [item for item in items if item not in out]
        config.hook.pytest_deselected(items=out)
    return sorted({item.nodeid.split("::")[0] for item in out})


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Keep that a long test has passed, or no longer that it had. pytest-xdist's processes leave it to the first."""
    seen = dict(report.user_properties).get(SEEN)
    if seen and (report.when == "call" or report.failed) and "PYTEST_XDIST_WORKER" not in os.environ:
        note(report.nodeid, seen if report.passed else None)


def _marked(item: pytest.Item) -> tuple[str, ...]:
    return mark.args if (mark := item.get_closest_marker("watches")) else ()


def _git(*words: str) -> str:
    done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True)
    return done.stdout if done.returncode == 0 else ""
