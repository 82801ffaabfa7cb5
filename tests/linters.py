"""The real tools, run over every distinct content once: equal files of different stacks are one file here."""

import functools
import hashlib
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterable
from pathlib import Path

import yamllint.config
import yamllint.linter
from invariants import make_targets
from rendering import Tree

Fault = tuple[Tree, str]


def tool(name: str) -> str:
    """Return the path of a program that the test requirements install, wherever this Python is run from."""
    beside = Path(sysconfig.get_path("scripts")) / name
    found = str(beside) if beside.exists() else shutil.which(name)
    assert found, f"{name} is missing: install tests/requirements.txt"
    return found


def distinct(trees: Iterable[Tree], wanted: Callable[[str], bool], *beside: str) -> list[tuple[Tree, str]]:
    """Return (tree, path) once for every distinct content of the wanted files, read together with those beside it."""
    seen: dict[tuple[str, ...], tuple[Tree, str]] = {}
    for tree in trees:
        for name, text in tree.files.items():
            if wanted(name):
                seen.setdefault((name, text, *(tree.files.get(other, "") for other in beside)), (tree, name))
    return list(seen.values())


def run_on_all(command: list[str], files: list[tuple[Tree, str]]) -> list[Fault]:
    """Run one command on all files; a complaint is the line that names a file, with the lines that follow it."""
    if not files:
        return []
    paths = {str(tree.root / name): (tree, name) for tree, name in files}
    done = subprocess.run([*command, *paths], capture_output=True, text=True)
    output = (done.stdout + done.stderr).strip()
    faults: list[Fault] = []
    for line in output.splitlines():
        named = next(((path, tree, name) for path, (tree, name) in paths.items() if path in line), None)
        if named:
            path, tree, name = named
            faults.append((tree, line.replace(path, name)))
        elif faults:
            faults[-1] = (faults[-1][0], f"{faults[-1][1]} {line.strip()}")
    if done.returncode and not faults:
        return [(files[0][0], f"{Path(command[0]).name} ended with {done.returncode}: {output}")]
    return faults


def yamllint_faults(trees: list[Tree]) -> list[Fault]:
    """yamllint --strict, with the configuration that the stack ships."""
    found = []
    for tree, name in distinct(trees, lambda name: name.endswith((".yaml", ".yml")), ".yamllint"):
        problems = yamllint.linter.run(tree.files[name], _yamllint_config(tree.files[".yamllint"]), name)
        found += [(tree, f"{name}:{problem.line}: yamllint: {problem.message}") for problem in problems]
    return found


@functools.cache
def _yamllint_config(text: str) -> yamllint.config.YamlLintConfig:
    return yamllint.config.YamlLintConfig(text)


def hadolint_faults(trees: list[Tree]) -> list[Fault]:
    """hadolint on every Dockerfile."""
    return run_on_all([tool("hadolint"), "--no-color"], distinct(trees, lambda name: name.endswith("Dockerfile")))


def shellcheck_faults(trees: list[Tree]) -> list[Fault]:
    """shellcheck on every script, told by its name or its first line."""
    return run_on_all([tool("shellcheck"), "--format=gcc"], scripts(trees))


def shfmt_faults(trees: list[Tree]) -> list[Fault]:
    """shfmt would change nothing."""
    return run_on_all([tool("shfmt"), "-l", "-i", "2", "-ci"], scripts(trees))


def scripts(trees: list[Tree]) -> list[tuple[Tree, str]]:
    """Return every distinct shell script."""
    return [
        (tree, name)
        for tree, name in distinct(trees, lambda name: not name.endswith(".py"))
        if name.endswith(".sh") or re.match(r"#!.*\bsh\n", tree.files[name])
    ]


def ruff_faults(trees: list[Tree]) -> list[Fault]:
    """ruff finds nothing in the Python, and would format nothing, with the settings that the stack ships."""
    files = distinct(trees, lambda name: name.endswith(".py"))
    return run_on_all([tool("ruff"), "check", "--no-cache", "--quiet", "--output-format=concise"], files) + run_on_all(
        [tool("ruff"), "format", "--check", "--no-cache", "--quiet"], files
    )


def workflow_faults(trees: list[Tree]) -> list[Fault]:
    """Workflows follow GitHub's schema, which the package brings along."""
    files = distinct(trees, lambda name: name.startswith(".github/workflows/"))
    schema = ["--builtin-schema", "vendor.github-workflows"]
    return run_on_all([tool("check-jsonschema"), *schema], files)


def renovate_faults(trees: list[Tree]) -> list[Fault]:
    """Renovate's configuration follows its schema, which the package brings along."""
    files = distinct(trees, lambda name: name == "renovate.json")
    return run_on_all([tool("check-jsonschema"), "--builtin-schema", "vendor.renovate"], files)


def hook_faults(trees: list[Tree]) -> list[Fault]:
    """pre-commit understands its configuration."""
    files = distinct(trees, lambda name: name == ".pre-commit-config.yaml")
    return run_on_all([tool("pre-commit"), "validate-config"], files)


# The hooks of pre-commit-hooks that read single files; yamllint, shellcheck and hadolint are above.
HOOKS = {
    "check-merge-conflict": ["check-merge-conflict", "--assume-in-merge"],
    "check-yaml": ["check-yaml", "--allow-multiple-documents"],  # k8s/ has some; invariants.py sees to the others
    "check-added-large-files": ["check-added-large-files", "--enforce-all"],
    "detect-private-key": ["detect-private-key"],
    "end-of-file-fixer": ["end-of-file-fixer"],
    "mixed-line-ending": ["mixed-line-ending", "--fix=no"],
    "trailing-whitespace": ["trailing-whitespace-fixer"],
}
ELSEWHERE = {"yamllint", "shellcheck", "hadolint"}


def precommit_faults(trees: list[Tree], scratch: Path) -> list[Fault]:
    """The hooks that the stack configures find nothing and would fix nothing in a new stack."""
    found = []
    for tree, name in distinct(trees, lambda name: name == ".pre-commit-config.yaml"):
        hooks = set(re.findall(r"- id: ([\w-]+)", tree.files[name]))
        found += [
            (tree, f"{name}: the tests do not know the hook {hook}") for hook in sorted(hooks - {*HOOKS, *ELSEWHERE})
        ]
    files = []  # copies, because some hooks write
    for tree, name in distinct(trees, lambda name: not re.fullmatch(r"mlflow/requirements/.*\.txt", name)):
        copy = scratch / hashlib.sha256(tree.files[name].encode()).hexdigest()[:16] / Path(name).name
        copy.parent.mkdir(exist_ok=True)
        shutil.copy2(tree.root / name, copy)
        files.append((tree, name, copy))
    # Some of the hooks ask git which files are staged.
    subprocess.run(["git", "init", "-q"], cwd=scratch, check=True)
    for hook, (command, *options) in HOOKS.items():
        some = [str(copy) for _, name, copy in files if hook != "check-yaml" or name.endswith((".yaml", ".yml"))]
        done = subprocess.run([tool(command), *options, *some], cwd=scratch, capture_output=True, text=True)
        if done.returncode:
            text = done.stdout + done.stderr
            hits = [(tree, f"{name}: {hook} is not content") for tree, name, copy in files if str(copy) in text]
            found += hits or [(trees[0], f"{hook}: {text.strip()}")]
    return found


def make_faults(trees: list[Tree]) -> list[Fault]:
    """make reads every Makefile, `make` alone prints the help, and each target can be planned."""
    found = []
    for tree, name in distinct(trees, lambda name: name == "Makefile"):
        clean = {key: value for key, value in os.environ.items() if not key.startswith(("MAKE", "MFLAGS"))}
        helped, targets = make_targets(tree.files[name])
        done = subprocess.run(["make"], cwd=tree.root, env=clean, capture_output=True, text=True)
        printed = re.findall(r"(?m)^  make (\S+) +\S", done.stdout)
        if done.returncode or printed != helped:
            found.append((tree, f"Makefile: 'make' prints the targets {printed}: {done.stderr.strip()}"))
        for target in targets:
            # -n prints the commands and runs none of them.
            done = subprocess.run(["make", "-n", target], cwd=tree.root, env=clean, capture_output=True, text=True)
            if done.returncode or done.stderr:
                found.append((tree, f"Makefile: make -n {target}: {done.stderr.strip()}"))
    return found


def python_compiles(trees: list[Tree]) -> list[Fault]:
    """The oldest Python that `make local` accepts compiles stackops."""
    files = distinct(trees, lambda name: name.endswith(".py"))
    code = "import ast, sys\nfor name in sys.argv[1:]: ast.parse(open(name).read(), name, feature_version=(3, 11))"
    return run_on_all([sys.executable, "-c", code], files)
