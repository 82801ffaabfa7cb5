"""`make init`, run for every distinct scripts/init.sh: it makes .env and the secrets, and keeps what is there."""

import os
import re
import shutil
import stat
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from invariants import load_yaml
from linters import distinct
from rendering import Tree, assert_none

# Secrets that only a person has: made empty, and named. A private certificate authority is rare, so it is not named.
GIVEN = {
    "azure_connection_string",
    "db_ca.pem",
    "gcs_credentials.json",
    "oidc_ca.pem",
    "oidc_client_secret",
}
NOT_NAMED = {"db_ca.pem", "oidc_ca.pem", "tls_ca.pem"}
# Signs, and no container needs it.
HELD_BACK = {"tls_ca.key"}
# Made empty, and filled by 'make up', in the image.
LATER = {"htpasswd"}


def given(tree: Tree) -> set[str]:
    """Return the secrets of this stack that 'make init' cannot make."""
    mine = {"db_password"} if tree.answers["backend"] == "managed" else set()
    mine |= {"s3_credentials"} if tree.answers["artifact_store"] == "s3" else set()
    mine |= {"files": {"tls.pem", "tls.key", "tls_ca.pem"}, "acme": {"tls_ca.pem"}}.get(tree.answers["tls"], set())
    return GIVEN | mine


def init(stack: Path, *goals: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run scripts/init.sh, for these targets of make, without Docker and without the tester's settings."""
    clean = {"PATH": os.environ["PATH"], "HOME": str(stack), "DOCKER_HOST": "unix:///nowhere"} | environment
    return subprocess.run(["scripts/init.sh", *goals], cwd=stack, env=clean, capture_output=True, text=True, timeout=60)


def state(stack: Path) -> dict[str, tuple[bytes, int, int]]:
    """Return content, mode and time of change of .env and the secrets."""
    paths = [stack / ".env", stack / "secrets", *(stack / "secrets").glob("**/*")]
    return {
        str(path): (b"" if path.is_dir() else path.read_bytes(), path.stat().st_mode, path.stat().st_mtime_ns)
        for path in paths
        if path.exists()
    }


def env_of(stack: Path) -> dict[str, str]:
    """Return the settings of .env; a key that is there twice fails."""
    lines = (stack / ".env").read_text().splitlines()
    keys = [line.partition("=")[0] for line in lines]
    assert len(keys) == len(set(keys)), keys
    return dict(line.split("=", 1) for line in lines)


def faults_of_init(tree: Tree, stack: Path) -> list[str]:
    """Run init twice on a fresh copy and return what is wrong."""
    shutil.copytree(tree.root, stack)
    first, secrets = init(stack), stack / "secrets"
    if first.returncode or first.stderr:
        return [f"ended with {first.returncode}: {first.stderr}"]
    declared = load_yaml(tree.files["compose.yaml"])["secrets"]
    found = [
        f"secrets {name}: its file is {body['file']}"
        for name, body in declared.items()
        if body["file"].removeprefix("./") != f"secrets/{name}"
    ]
    files = [path for path in secrets.iterdir() if path.is_file()]
    made = {path.name for path in files}
    wanted = set(declared) | (HELD_BACK if tree.answers["tls"] == "self-signed" else set())
    if made != wanted:
        found.append(f"made and not declared, or declared and not made: {sorted(made ^ wanted)}")
    if stat.S_IMODE(secrets.stat().st_mode) != 0o700:
        found.append("secrets/ is open to others")
    for path in [stack / ".env", *files]:
        if stat.S_IMODE(path.stat().st_mode) != 0o600:
            found.append(f"{path.name} has the mode {stat.S_IMODE(path.stat().st_mode):o}")
    values = {path.name: path.read_text() for path in files}
    for name, value in values.items():
        if name in given(tree):
            found += [f"{name} is not empty"] * bool(value)
            found += [f"does not say what belongs in {name}"] * (
                f"secrets/{name}" not in first.stdout and name not in NOT_NAMED
            )
        elif name in LATER:
            found += [f"{name} is not empty"] * bool(value)
        elif name != "passwd" and len(value) < 20:
            found.append(f"{name} is weak or empty: {len(value)} characters")
        if value.strip() and any(word in first.stdout for word in re.findall(r"[\w-]{20,}", value)):
            found.append(f"printed the secret {name}")
    weak = [
        name for name, value in values.items() if name != "passwd" and value and list(values.values()).count(value) > 1
    ]
    found += [f"{name} is the same as another" for name in weak]
    settings = env_of(stack)
    required = re.findall(r"(?m)^([A-Z0-9_]+)=", tree.files[".env.example"])
    if sorted(settings) != sorted(required):
        found.append(f".env holds {sorted(settings)} and not {sorted(required)}")
    owner = secrets.stat().st_uid
    if settings["STACK_UID"] != str(owner) or owner == 0:
        found.append(f"STACK_UID is {settings['STACK_UID']}, and {owner} owns secrets/")
    found += ["does not ask for DB_HOST"] * ("DB_HOST" in settings and "DB_HOST" not in first.stdout)

    before = state(stack)
    second, after = init(stack), state(stack)
    if second.returncode or after != before:
        changed = sorted(
            Path(path).name for path in before.keys() | after.keys() if before.get(path) != after.get(path)
        )
        found.append(f"the second run changed the content, mode or time of {changed} {second.stderr}")
    if re.search(r"\bmade\b", second.stdout):
        found.append(f"the second run says that it made something: {second.stdout}")
    return found


def lines_of_init(tree: Tree) -> set[tuple[str, str]]:
    """Return the lines of what init runs."""
    scripts = ("scripts/init.sh", "scripts/certificate.sh")
    return {(name, line) for name in scripts for line in tree.files.get(name, "").splitlines()}


def with_every_line(trees: list[Tree]) -> list[Tree]:
    """Return as few stacks as greed finds, so that every line that init has anywhere is in one of them."""
    lines = [(tree, lines_of_init(tree)) for tree in trees]
    missing, chosen = set().union(*(own for _, own in lines)), []
    while missing:
        tree, own = max(lines, key=lambda pair: len(pair[1] & missing))
        chosen.append(tree)
        missing -= own
    return chosen


EVERY_SCRIPT = pytest.mark.watches(
    "template/scripts/init.sh.jinja", "template/scripts/certificate.sh.jinja", "template/.env.example.jinja",
    "extensions/compose/*", "extensions/questions/*",
)  # fmt: skip


@pytest.mark.parametrize("every", ["line", pytest.param("script", marks=EVERY_SCRIPT)])
def test_init_everywhere(trees: list[Tree], tmp_path: Path, every: str) -> None:
    """Every stack gets the secrets that its Compose file names; a second run changes not a byte and not a time."""
    # The address and the port in .env.example change nothing here: one stack of each script will do.
    scripts = [tree for tree, _ in distinct(trees, lambda name: name == "scripts/init.sh")]
    assert len(scripts) > 20
    cases = with_every_line(trees) if every == "line" else scripts
    with ThreadPoolExecutor(2) as pool:
        folders = [tmp_path / f"{number}" for number in range(len(cases))]
        results = list(pool.map(faults_of_init, cases, folders))
    assert_none((tree, fault) for tree, found in zip(cases, results, strict=True) for fault in found)


@pytest.fixture
def stack(trees: list[Tree], tmp_path: Path) -> Callable[..., Path]:
    """Return a fresh copy of one stack."""

    def run(**answers: str) -> Path:
        tree = next(tree for tree in trees if answers.items() <= tree.answers.items())
        return Path(shutil.copytree(tree.root, tmp_path / "stack"))

    return run


def test_what_is_set_stays(stack: Callable[..., Path]) -> None:
    """Settings and secrets of the owner are kept, odd ones too, and what is missing is added."""
    folder = stack(backend="postgres", artifact_store="seaweedfs", auth="mlflow")
    (folder / ".env").write_text("MINE=a b 'c' $d\n# a comment\nSTACK_GID=777\nSTACK_UID=777")  # no newline at the end
    (folder / "secrets").mkdir()
    (folder / "secrets" / "db_password").write_text("p@ss:w/o#rd%1[]")
    (folder / "secrets" / "mine").write_text("x")
    (folder / ".env.example").write_text(
        (folder / ".env.example").read_text() + "\n# New in the template.\nNEW_KEY=1\n"
    )
    done = init(folder)
    assert done.returncode == 0, done.stderr
    assert (folder / ".env").read_text() == "MINE=a b 'c' $d\n# a comment\nSTACK_GID=777\nSTACK_UID=777\nNEW_KEY=1\n"
    assert (folder / "secrets" / "db_password").read_text() == "p@ss:w/o#rd%1[]"
    assert (folder / "secrets" / "mine").read_text() == "x"
    assert "db_password" not in done.stdout


def test_a_lost_key_of_the_store_is_made_anew_in_its_list_too(stack: Callable[..., Path]) -> None:
    folder = stack(backend="postgres", artifact_store="seaweedfs", auth="mlflow")
    assert init(folder).returncode == 0
    secrets = folder / "secrets"
    before = {path.name: path.read_text() for path in secrets.iterdir() if path.is_file()}
    (secrets / "s3_credentials").unlink()
    assert init(folder).returncode == 0
    key = re.search(r"aws_secret_access_key = (\S+)", (secrets / "s3_credentials").read_text())[1]
    [name] = [name for name, text in before.items() if "identities" in text]
    listed = (secrets / name).read_text()
    assert key in listed and key not in before[name]
    admin = re.search(r"aws_secret_access_key = (\S+)", before["object_store_admin"])[1]
    assert admin in listed and admin in before[name], "the other keys stay"


def test_a_setting_that_nothing_reads_any_more_is_told(stack: Callable[..., Path]) -> None:
    folder = stack(backend="postgres", artifact_store="seaweedfs", auth="mlflow")
    assert "note:" not in init(folder, "init").stdout
    with open(folder / ".env", "a", encoding="utf-8") as file:
        file.write("OLD=1\nMINE=2\nCOMPOSE_PROFILES=x\nPOSTGRES_MEMORY=3g\n")
    (folder / "compose.override.yaml").write_text("services: {mlflow: {environment: {MINE: }}}\n")
    settings = (folder / ".env").read_text()
    assert "note:" not in init(folder).stdout, "it belongs to make init and make up, not to every target"
    told = [line for line in init(folder, "init").stdout.splitlines() if "note:" in line]
    assert told == ["init: note: OLD in .env is used by nothing here: take it out, if it is not yours"]
    assert (folder / ".env").read_text() == settings


@pytest.mark.parametrize(
    ("volumes", "gone", "named"),
    [
        ((), ("db_password", "crypto_kek_passphrase"), ""),  # a new stack
        (("mlflow-spool", "postgres-data"), ("admin_password", "passwd", "s3_credentials"), ""),  # new ones will do
        (("mlflow-spool",), ("db_password", "webhook_encryption_key"), "webhook_encryption_key"),
        (("mlflow-spool", "postgres-data"), ("db_password", "postgres_password"), "db_password postgres_password"),
        (("postgres-data",), ("postgres_password",), "postgres_password"),
    ],
)  # fmt: skip
def test_a_lost_secret_is_not_made_anew_silently(
    stack: Callable[..., Path], volumes: tuple[str, ...], gone: tuple[str, ...], named: str
) -> None:
    """Where data need it, a new one would only look like the old one. Nothing is made then; NEW=1 says that it may."""
    folder = stack(backend="postgres", artifact_store="seaweedfs", auth="mlflow")
    project = load_yaml((folder / ".copier-answers.yml").read_text())["project_name"]
    assert init(folder).returncode == 0
    for name in gone:
        (folder / "secrets" / name).unlink()
    (folder / "bin").mkdir()
    listed = "\n".join(f"{project}_{name}" for name in ("edge", *volumes, "postgres-data-of-another"))
    (folder / "bin" / "docker").write_text(f'#!/bin/sh\n[ "$1 $2" != "volume ls" ] || echo "{listed}"\n')
    (folder / "bin" / "docker").chmod(0o755)
    path = f"{folder}/bin:{os.environ['PATH']}"
    before = state(folder)
    done = init(folder, PATH=path)
    if not named:
        assert done.returncode == 0 and all((folder / "secrets" / name).exists() for name in gone), done.stderr
        return
    assert done.returncode == 1 and done.stderr.startswith(
        f"init: error: lost from secrets/, and the data need it: {named};"
    )
    assert "'make lost-secrets'" in done.stderr and done.stderr.count("\n") == 1
    assert state(folder) == before
    done = init(folder, PATH=path, NEW="1")
    assert done.returncode == 0 and all((folder / "secrets" / name).exists() for name in gone), done.stderr
    assert init(folder, PATH=path).returncode == 0


def test_a_lost_secret_of_a_stack_without_docker(stack: Callable[..., Path]) -> None:
    folder = stack(backend="sqlite", artifact_store="local")
    assert init(folder).returncode == 0
    (folder / "data").mkdir()
    (folder / "data" / "mlflow.db").touch()
    (folder / "secrets" / "crypto_kek_passphrase").unlink()
    assert "the data need it: crypto_kek_passphrase;" in init(folder).stderr


def certificate(folder: Path, name: str, *questions: str) -> str:
    """Ask OpenSSL about a certificate of secrets/."""
    command = ["openssl", "x509", "-in", folder / "secrets" / name, "-noout", *questions]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def test_the_certificate_is_good_for_its_names_alone(stack: Callable[..., Path]) -> None:
    """Its authority vouches for it under the stack's names, and could not vouch for any other."""
    folder = stack(tls="self-signed", domain="mlflow.example.com", reverse_proxy="nginx", store_domain="s3.example.com")
    assert init(folder).returncode == 0
    secrets = folder / "secrets"
    for name in ("mlflow.example.com", "s3.example.com", "localhost"):
        verify = ["openssl", "verify", "-x509_strict", "-CAfile", "tls_ca.pem", "-verify_hostname", name, "tls.pem"]
        assert subprocess.run(verify, cwd=secrets, capture_output=True).returncode == 0, name
    forged = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=x", "-keyout", "x.key"]
    forged += [
        "-addext",
        "subjectAltName=DNS:bank.example.net",
        "-addext",
        "basicConstraints=CA:FALSE",
        "-out",
        "x.pem",
    ]
    subprocess.run([*forged, "-CA", "tls_ca.pem", "-CAkey", "tls_ca.key"], cwd=secrets, check=True, capture_output=True)
    verify = ["openssl", "verify", "-CAfile", "tls_ca.pem", "x.pem"]
    done = subprocess.run(verify, cwd=secrets, capture_output=True, text=True)
    assert done.returncode != 0 and "permitted subtree violation" in done.stderr, done


def test_a_certificate_is_renewed_when_it_must_be(stack: Callable[..., Path]) -> None:
    """Near its end, for another name, or without its authority; the authority itself only for the last two."""
    folder = stack(tls="self-signed", domain="mlflow.example.com")
    secrets, script = folder / "secrets", folder / "scripts" / "certificate.sh"
    assert init(folder).returncode == 0
    before = {name: (secrets / name).read_bytes() for name in ("tls.pem", "tls_ca.pem")}

    def changed() -> set[str]:
        assert init(folder).returncode == 0
        found = {name for name in before if (secrets / name).read_bytes() != before[name]}
        before.update((name, (secrets / name).read_bytes()) for name in before)
        return found

    assert changed() == set()
    text = script.read_text()
    script.write_text(text.replace("-days 397", "-days 29"))
    (secrets / "tls.pem").unlink()
    assert changed() == {"tls.pem"} and "mlflow.example.com" in certificate(folder, "tls.pem", "-text")
    script.write_text(text)
    assert changed() == {"tls.pem"}, "29 days are too few"
    script.write_text(text.replace("mlflow.example.com", "other.example.com"))
    assert changed() == {"tls.pem", "tls_ca.pem"}
    (secrets / "tls_ca.key").unlink()
    assert changed() == {"tls.pem", "tls_ca.pem"}
    assert changed() == set()


def test_without_openssl_there_is_one_sentence(stack: Callable[..., Path]) -> None:
    """Who has no openssl is told so, and what to do."""
    folder = stack(tls="self-signed")
    (bare := folder / "bare").mkdir()
    for path in os.environ["PATH"].split(":"):
        for program in Path(path).glob("*") if Path(path).is_dir() else []:
            if program.name != "openssl" and not (bare / program.name).exists():
                (bare / program.name).symlink_to(program)
    done = init(folder, PATH=str(bare))
    assert done.returncode != 0 and done.stderr.startswith("init: error: openssl is not installed"), done
    assert done.stderr.count("\n") == 1


def test_an_empty_env_is_completed(stack: Callable[..., Path]) -> None:
    """An empty .env is as good as none."""
    folder = stack(backend="sqlite")
    (folder / ".env").touch()
    assert init(folder).returncode == 0
    assert env_of(folder)["STACK_UID"].isdigit()


def test_a_value_that_was_filled_in_stays(stack: Callable[..., Path]) -> None:
    """The empty DB_HOST of .env.example does not come back beside the owner's."""
    folder = stack(backend="managed")
    assert init(folder).returncode == 0
    text = (folder / ".env").read_text().replace("DB_HOST=", "DB_HOST=db.example.com")
    (folder / ".env").write_text(text)
    assert init(folder).returncode == 0
    assert (folder / ".env").read_text() == text


def test_root_hands_the_secrets_to_another(stack: Callable[..., Path]) -> None:
    """Root gives secrets/ to the user behind sudo; anybody else keeps them."""
    folder = stack(backend="sqlite")
    assert init(folder, SUDO_UID="4321", SUDO_GID="4322").returncode == 0
    owner = (folder / "secrets").stat()
    expected = ("4321", "4322") if os.geteuid() == 0 else (str(os.geteuid()), str(os.getegid()))
    assert (env_of(folder)["STACK_UID"], env_of(folder)["STACK_GID"]) == expected
    assert (str(owner.st_uid), str(owner.st_gid)) == expected


def test_a_run_that_was_cut_off_is_completed(stack: Callable[..., Path]) -> None:
    """A secret is there whole or not at all: the half-written file of a run that was cut off is not used."""
    folder = stack(backend="postgres", artifact_store="local")
    (folder / "secrets").mkdir()
    (folder / "secrets" / ".db_password.new").write_text("ha")
    assert init(folder).returncode == 0
    assert len((folder / "secrets" / "db_password").read_text()) >= 20


def test_a_file_that_cannot_be_written_is_an_error(stack: Callable[..., Path]) -> None:
    """Without a place for the secrets, init fails and says so."""
    folder = stack(backend="sqlite")
    (folder / "secrets").write_text("in the way")
    done = init(folder)
    assert done.returncode != 0 and "secrets" in done.stderr
    assert (folder / "secrets").read_text() == "in the way"


def test_a_secret_of_another_user_is_named(stack: Callable[..., Path], tmp_path: Path) -> None:
    """The stack could not read it; root would have handed it over."""
    folder = stack(backend="sqlite")
    assert init(folder).returncode == 0
    somebody = tmp_path / "bin" / "id"
    somebody.parent.mkdir()
    somebody.write_text("#!/bin/sh\necho 4242\n")
    somebody.chmod(0o755)
    done = init(folder, PATH=f"{somebody.parent}:{os.environ['PATH']}")
    assert done.returncode == 1
    assert re.fullmatch(
        r"init: error: secrets\S* belongs to another user: run 'sudo chown -R \d+:\d+ secrets'\n", done.stderr
    )


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ("", "{public}"),
        ("HTTP_PORT=9999\nHTTPS_PORT=9999\n", "{other_port}"),
        ("PUBLIC_URL=https://ml.example.org/x\nHTTP_PORT=1\n", "https://ml.example.org/x"),
    ],
)
def test_the_address(trees: list[Tree], tmp_path: Path, settings: str, expected: str) -> None:
    """scripts/url.sh prints what the answers and .env say, with .env and without."""
    for number, (tree, _) in enumerate(distinct(trees, lambda name: name == "scripts/url.sh")):
        answers = tree.answers
        host, port = (answers["domain"], 8080) if answers["reverse_proxy"] != "none" else ("localhost", 5000)
        scheme, shown = "http", f":{port}"
        if answers["tls"] != "none":
            scheme, shown = "https", "" if answers["tls"] == "acme" else ":8443"
        urls = {
            "public": f"{scheme}://{host}{shown}{answers['url_prefix']}",
            "other_port": f"{scheme}://{host}:9999{answers['url_prefix']}",
        }
        stack = tmp_path / str(number)
        shutil.copytree(tree.root / "scripts", stack / "scripts")
        if settings:
            (stack / ".env").write_text(settings)
        done = subprocess.run(["scripts/url.sh"], cwd=stack, check=True, capture_output=True, text=True)
        assert done.stdout.strip() == expected.format(**urls), tree.name
        assert urls["public"] in tree.files["README.md"], tree.name
