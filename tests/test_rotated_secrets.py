"""Every secret of every stack is changed by `make rotate-secrets`, or somebody has said why not."""

import re

from rendering import Tree, assert_none

NOT_CHANGED = {
    "passwd": "a name for a numeric user, no secret",
    "db_ca.pem": "the certificate of somebody else's database",
    "oidc_ca.pem": "the certificate of the provider's authority",
    "tls.pem": "a certificate; everybody may see it",
    "tls_ca.pem": "a certificate; everybody may see it",
    "tls.key": "made together with its certificate: docs/security.md says how",
    "object_store_root_user": "a name; the password beside it is changed",
}


def rows(tree: Tree) -> dict[str, list[str]]:
    """Return the table in scripts/rotate-secrets.sh: secret -> how, group, services."""
    text = re.search(r"(?ms)^table='\n(.*?)^'$", tree.files["scripts/rotate-secrets.sh"])[1]
    return {line.split(":")[0]: line.split(":")[1:] for line in text.splitlines()}


def faults(tree: Tree) -> list[str]:
    """Return what is wrong with a stack's table."""
    import yaml

    model = yaml.safe_load(tree.files["compose.yaml"])
    declared, known = set(model["secrets"]), rows(tree)
    found = [f"{name}: nothing changes it" for name in declared - known.keys() - NOT_CHANGED.keys()]
    found += [f"{name}: is no secret of this stack" for name in known.keys() - declared]
    for name, (how, _, services) in known.items():
        if f"stackops/stackops/rotation/{how}.py" not in tree.files:
            found.append(f"{name}: there is no module {how}")
        found += [f"{name}: there is no service {s}" for s in services.split(",") if s and s not in model["services"]]
        if how == "given" and not re.search(rf"\b{re.escape(name)} \|", tree.files["scripts/rotate-secrets.sh"]):
            found.append(f"{name}: nobody says who issues it")
    return found


def test_every_secret_is_changed_or_somebody_said_why_not(trees: list[Tree]) -> None:
    """The table of scripts/rotate-secrets.sh fits to the secrets, modules and services of the stack."""
    assert_none((tree, fault) for tree in trees for fault in faults(tree))


def test_a_missing_row_would_be_found(trees: list[Tree]) -> None:
    """A secret that is added to a stack without a way to change it is a fault."""
    tree = trees[0]
    compose = tree.files["compose.yaml"].replace("\nsecrets:\n", "\nsecrets:\n  new_one: {file: secrets/new_one}\n")
    assert faults(Tree(tree.answers, tree.root, {**tree.files, "compose.yaml": compose}, tree.modes)) == [
        "new_one: nothing changes it"
    ]
