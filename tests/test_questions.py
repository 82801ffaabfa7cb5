"""The questions: what each answer does, what is refused and with which words, and that defaults always fit."""

import itertools
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import copier
import pytest
import yaml
from combinations import REFUSED, Answers, choices, questions
from linters import tool
from rendering import render, shortcuts

CHOICES = ("purpose", "backend", "artifact_store", "artifact_access", "reverse_proxy", "auth", "tls")


@pytest.fixture(scope="module", autouse=True)
def fast() -> Iterator[None]:
    """Many small renderings."""
    with shortcuts():
        yield


def answers_of(project: Path) -> dict[str, Any]:
    """Return what the answers file keeps, but for what Copier adds."""
    kept = yaml.safe_load((project / ".copier-answers.yml").read_text())
    return {name: value for name, value in kept.items() if not name.startswith("_")}


# --- What an answer does (pytest-copie) ---------------------------------------------------------------------------

# answers, file, words that must be there, words that must not
EFFECTS: list[tuple[Answers, str, list[str], list[str]]] = [
    ({}, "compose.yaml", ["name: copie000", "127.0.0.1:${HTTP_PORT:-5000}:5000"], ["nginx", "postgres"]),
    ({"project_name": "my-stack"}, "compose.yaml", ["name: my-stack\n", "my-stack-mlflow:"], ["copie000"]),
    (
        {"project_name": "my_stack", "artifact_store": "s3"},
        "compose.yaml",
        ["my-stack-artifacts"],
        ["my_stack-artifacts"],
    ),
    ({"backend": "sqlite"}, "compose.yaml", ["STACK_BACKEND: sqlite", "mlflow-data:/data"], ["DB_HOST"]),
    ({"backend": "postgres"}, "compose.yaml", ["  postgres:", "postgres-data:", "DB_HOST: postgres"], ["DB_HOST:?"]),
    ({"backend": "managed"}, "compose.yaml", ["${DB_HOST:?", "verify-full"], ["  postgres:", "postgres-data"]),
    ({"artifact_store": "seaweedfs"}, "compose.yaml", ["s3://copie000-artifacts", "  object-store:"], ["STORE_PORT"]),
    ({"artifact_store": "minio"}, "compose.yaml", ["  object-store:", "silo"], ["seaweedfs"]),
    ({"artifact_store": "s3"}, "compose.yaml", ["s3://${S3_BUCKET:-copie000-artifacts}"], ["object-store"]),
    ({"artifact_store": "s3", "bucket": "other"}, "README.md", ["`other`"], ["copie000-artifacts"]),
    (
        {"artifact_store": "s3", "s3_region": "eu-west-3"},
        "compose.yaml",
        ["AWS_DEFAULT_REGION:-eu-west-3"],
        ["us-east-1"],
    ),
    ({"artifact_store": "azure"}, "compose.yaml", ["wasbs://", "AZURE_CONTAINER:-mlflow}"], ["s3://"]),
    ({"artifact_store": "azure", "azure_account": "acme1"}, "compose.yaml", ["AZURE_ACCOUNT:-acme1}"], []),
    ({"artifact_store": "azure", "azure_container": "runs"}, "compose.yaml", ["AZURE_CONTAINER:-runs}"], []),
    ({"artifact_store": "gcs"}, "compose.yaml", ["gs://"], ["s3://", "wasbs://"]),
    (
        {"artifact_store": "seaweedfs", "artifact_access": "direct"},
        "compose.yaml",
        ["ARTIFACT_ACCESS: direct", "client_s3_credentials", "STORE_PORT"],
        ["ARTIFACT_ACCESS: proxied"],
    ),
    (
        {"artifact_store": "seaweedfs", "artifact_access": "presigned"},
        "compose.yaml",
        ["ARTIFACT_ACCESS: presigned", "STORE_URL: ${STORE_URL:-http://localhost:${STORE_PORT:-8333}}", "  nginx:"],
        ["client_s3_credentials"],
    ),
    (
        {
            "artifact_store": "minio",
            "artifact_access": "presigned",
            "domain": "ml.example.org",
            "store_domain": "s3.example.org",
        },
        "compose.yaml",
        ["STORE_URL: ${STORE_URL:-http://s3.example.org:${HTTP_PORT:-8080}}"],
        ["STORE_PORT"],
    ),
    ({"reverse_proxy": "nginx"}, "compose.yaml", ["  nginx:", "HTTP_PORT:-8080"], ["HTTP_PORT:-5000"]),
    (
        {"reverse_proxy": "nginx", "domain": "ml.example.org"},
        "compose.yaml",
        ["ml.example.org,ml.example.org:*", "https://ml.example.org"],
        [],
    ),
    (
        {"reverse_proxy": "nginx", "url_prefix": "/a/b"},
        "nginx/templates/mlflow.conf.template",
        ["location /a/b/", "X-Forwarded-Prefix /a/b;"],
        [],
    ),
    (
        {"reverse_proxy": "nginx", "auth": "basic"},
        "nginx/templates/mlflow.conf.template",
        ["auth_request /stackops/login;"],
        [],
    ),
    ({"auth": "mlflow"}, "compose.yaml", ["STACK_AUTH: mlflow", "flask_secret_key"], ["htpasswd"]),
    ({"reverse_proxy": "caddy"}, "compose.yaml", ["  caddy:", "HTTP_PORT:-8080"], ["nginx", "HTTPS_PORT"]),
    (
        {"reverse_proxy": "caddy", "url_prefix": "/a/b", "auth": "basic"},
        "caddy/Caddyfile",
        ["handle_path /a/b/*", "X-Forwarded-Prefix /a/b", "forward_auth", "admin off"],
        ["https://", "Strict-Transport-Security"],
    ),
    (
        {"tls": "self-signed", "domain": "ml.example.org"},
        "compose.yaml",
        ["  nginx:", "${HTTPS_PORT:-8443}:8443", "https://ml.example.org:${HTTPS_PORT:-8443}", "tls.key"],
        ["http://ml.example.org", "HSTS_SECONDS"],
    ),
    ({"tls": "files"}, "nginx/templates/mlflow.conf.template", ["listen 8443 ssl;", "return 308 https://$host"], []),
    (
        {"tls": "acme"},
        "compose.yaml",
        ["  caddy:", "caddy-data:/data", "0.0.0.0}:${HTTP_PORT:-80}:8080", "https://mlflow.example.com${HTTPS_PORT:+"],
        ["nginx", "tls.key"],
    ),
    ({"tls": "files", "https_port": 9443}, "compose.yaml", ["HTTPS_PORT:-9443"], ["HTTPS_PORT:-8443"]),
    ({"auth": "oidc"}, "compose.yaml", ["  oauth2-proxy:", "${OIDC_ISSUER:?", "  nginx:"], ["htpasswd"]),
    ({"http_port": 5123}, "compose.yaml", ["HTTP_PORT:-5123"], ["HTTP_PORT:-5000"]),
    ({"backups": True}, "compose.yaml", ["  backup-schedule:", "${BACKUP_SCHEDULE:-30 3 * * *}"], []),
    ({"monitoring": True}, "compose.yaml", ["  prometheus:", "  grafana:", "  metrics:"], []),
    ({"kubernetes": "kustomize"}, "k8s/base/deployment.yaml", ["type: Recreate", "claimName: mlflow-data"], ["DB_"]),
    ({"kubernetes": "kustomize", "purpose": "team"}, "k8s/base/config.env", ["DB_HOST=postgres\n"], ["sqlite"]),
    ({"purpose": "team"}, "compose.yaml", ["  postgres:", "  object-store:", "  nginx:", "htpasswd"], []),
    ({"purpose": "cloud"}, "compose.yaml", ["${DB_HOST:?", "${S3_BUCKET:-", "  nginx:", "htpasswd"], ["  postgres:"]),
]


@pytest.mark.parametrize(
    ("answers", "name", "there", "absent"),
    EFFECTS,
    ids=["-".join(map(str, e[0].values())) or "default" for e in EFFECTS],
)
def test_an_answer_has_its_effect(
    copy: Callable[..., Path], answers: Answers, name: str, there: list[str], absent: list[str]
) -> None:
    """Each answer shows where it should and not elsewhere."""
    text = (copy(**answers) / name).read_text()
    assert [word for word in there if word not in text] == []
    assert [word for word in absent if word in text] == []


def test_every_question_has_an_effect_here() -> None:
    """A new question needs a row above."""
    asked = {name for name, body in questions().items() if body.get("when") is not False}
    assert asked <= {name for answers, *_ in EFFECTS for name in answers} | {"artifact_access"}


def test_every_question_says_when_to_choose_what() -> None:
    """Each has a help text of one or two lines, and each choice a label that is more than its value."""
    for name, body in questions().items():
        if body.get("when") is not False:
            assert 10 < len(body["help"]) <= 200, name
            labels = [label.split(None, 1) for label in body.get("choices", {})]
            assert [label[0] for label in labels] == (choices(name) if labels else [])
            assert all(len(label) == 2 and len(label[1]) > 10 for label in labels), name


# --- Defaults -----------------------------------------------------------------------------------------------------

SINGLES = [(name, value) for name in CHOICES for value in choices(name)]
SINGLES += [
    ("url_prefix", "/mlflow"),
    ("domain", "mlflow.example.com"),
    ("http_port", 5050),
    ("backups", True),
    ("monitoring", True),
    ("kubernetes", "none"),
    ("kubernetes", "kustomize"),
]


@pytest.mark.parametrize(("question", "value"), SINGLES)
def test_defaults_fit_one_answer(template: Path, tmp_path: Path, question: str, value: Any) -> None:
    """`copier copy --defaults -d question=value` renders for every single value, and keeps it."""
    project = render(template, tmp_path / "demo", {question: value})
    assert answers_of(project)[question] == value


@pytest.mark.parametrize(
    ("purpose", "question", "value"),
    [(purpose, *single) for purpose, single in itertools.product(("team", "cloud"), SINGLES) if single[0] != "purpose"],
)
def test_defaults_fit_a_purpose_and_one_answer(
    template: Path, tmp_path: Path, purpose: str, question: str, value: Any
) -> None:
    """So does a purpose with any other answer."""
    project = render(template, tmp_path / "demo", {"purpose": purpose, question: value})
    assert answers_of(project)[question] == value


@pytest.mark.parametrize(
    ("purpose", "expected"),
    [
        ("solo", "sqlite local proxied none none none"),
        ("team", "postgres seaweedfs proxied nginx basic none"),
        ("cloud", "managed s3 proxied nginx basic none"),
    ],
)
def test_a_purpose_sets_the_defaults(template: Path, tmp_path: Path, purpose: str, expected: str) -> None:
    """The three purposes are what the documentation promises."""
    kept = answers_of(render(template, tmp_path / "demo", {"purpose": purpose}))
    assert " ".join(kept[name] for name in CHOICES[1:]) == expected


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("myproj", "myproj"),
        ("My Project", "my-project"),
        ("ML_Flow.2", "ml_flow-2"),
        ("--x", "x"),
        ("é", "mlflow-stack"),
        ("a" * 80, "a" * 50),
    ],
)
def test_the_folder_names_the_project(template: Path, tmp_path: Path, folder: str, name: str) -> None:
    """Any folder gives a valid name, a valid bucket and a valid account."""
    for store in ("minio", "azure", "gcs"):
        kept = answers_of(render(template, tmp_path / store / folder, {"artifact_store": store}))
        assert kept["project_name"] == name


def test_a_google_bucket_is_not_named_after_google(template: Path, tmp_path: Path) -> None:
    """Google refuses its own name in a bucket's, so the default avoids it."""
    render(template, tmp_path / "google-mlflow", {"artifact_store": "gcs"})


def test_answers_are_kept_and_nothing_else(template: Path, tmp_path: Path) -> None:
    """The answers file of a plain stack knows nothing of buckets, versions or secrets."""
    kept = answers_of(render(template, tmp_path / "demo", {}))
    assert kept == {
        "project_name": "demo",
        "purpose": "solo",
        "backend": "sqlite",
        "artifact_store": "local",
        "artifact_access": "proxied",
        "reverse_proxy": "none",
        "domain": "localhost",
        "url_prefix": "",
        "tls": "none",
        "auth": "none",
        "http_port": 5000,
        "backups": False,
        "monitoring": False,
        "kubernetes": "none",
    }


# --- What is refused ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("pair", "sentence"), REFUSED)
def test_a_refused_pair_says_why(template: Path, tmp_path: Path, pair: Answers, sentence: str) -> None:
    """Given with -d, the pair ends with our sentence and a non-zero exit, and the destination stays as it was."""
    destination = tmp_path / "there"
    destination.mkdir()
    (destination / "compose.yaml").write_text("mine\n")
    data = [part for name, value in pair.items() for part in ("-d", f"{name}={value}")]
    command = [tool("copier"), "copy", "--defaults", "--overwrite", *data, str(template), str(destination)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode != 0
    assert done.stderr.rstrip().endswith(sentence), done.stderr
    assert [path.name for path in destination.iterdir()] == ["compose.yaml"]
    assert (destination / "compose.yaml").read_text() == "mine\n"


@pytest.mark.parametrize(("pair", "sentence"), REFUSED)
def test_each_half_of_a_refused_pair_is_fine(template: Path, tmp_path: Path, pair: Answers, sentence: str) -> None:
    """It is the pair that is refused: each half goes with something."""
    for name, value in pair.items():
        render(template, tmp_path / name, {"purpose": "team", name: value})


LONG = "a" * 300
VALUES: dict[str, tuple[Answers, list[Any], list[Any]]] = {
    # question: (answers that make it asked, good values, bad values)
    "project_name": (
        {},
        ["a", "mlflow", "team-1", "my_stack", "0x", "a" * 50],
        ["", "-a", "_a", "A", "a b", "a.b", "a/b", "é", "a" * 51, "a\nb", "a\n", "${x}", "{{ x }}", "a;b"],
    ),
    "bucket": (
        {"artifact_store": "s3"},
        ["abc", "my-bucket", "0-0", "a" * 63],
        [
            "",
            "ab",
            "a" * 64,
            "A-b",
            "-abc",
            "abc-",
            "a_b",
            "a.b",
            "192.168.5.4",
            "xn--abc",
            "sthree-abc",
            "abc-s3alias",
            "abc--ol-s3",
            "s3://abc",
            "a b c",
            "abc\n",
            "${x}",
        ],
    ),
    "s3_region": (
        {"artifact_store": "s3"},
        ["us-east-1", "eu-central-1", "auto", "garage", "us-gov-west-1"],
        ["", "EU", "a b", "us_east_1", "-x", "x-", "${x}", LONG, "us-east-1\n"],
    ),
    "azure_account": (
        {"artifact_store": "azure"},
        ["abc", "team1", "a" * 24, "123"],
        ["", "ab", "a" * 25, "A1b", "a-b", "a_b", "a.blob", "abc\n"],
    ),
    "azure_container": (
        {"artifact_store": "azure"},
        ["abc", "ml-flow", "0-0", "a" * 63],
        ["", "ab", "a" * 64, "Ab1", "-ab", "ab-", "a--b", "a_b", "abc\n", "a-" * 40 + "a"],
    ),
    "domain": (
        {"reverse_proxy": "nginx"},
        [
            "localhost",
            "mlflow",
            "mlflow.example.com",
            "a-b.example",
            "xn--bcher-kva.example",
            "1a.example",
            ".".join(["a" * 63] * 3),
        ],
        [
            "",
            "http://x",
            "x:80",
            "x/y",
            "-a.b",
            "a-.b",
            "a..b",
            ".a",
            "a.",
            "A.b",
            "a_b.c",
            "é.de",
            "1.2.3.4",
            "*",
            "*.a.b",
            "a b",
            "a" * 64,
            LONG,
            "a.b\n",
            "${x}",
        ],
    ),
    "url_prefix": (
        {"reverse_proxy": "nginx"},
        ["", "/mlflow", "/a/b", "/team-1/ml_flow.v2"],
        [
            "mlflow",
            "/",
            "/mlflow/",
            "//a",
            "/a//b",
            "/A",
            "/a b",
            "/é",
            "/a?b",
            "/api",
            "/static-files",
            "/healthz",
            "/..",
            "/a/../b",
            "/a\n",
            "/${x}",
            "/a;b",
            "/a$b",
            "http://x/y",
        ],
    ),
    "http_port": ({}, [1, 80, 5000, 65535], [0, -1, 65536, 100000]),
    "https_port": ({"tls": "files"}, [1, 443, 65535], [0, -1, 65536, 8080]),
}
GOOD = [(question, value) for question, (_, good, _) in VALUES.items() for value in good]
BAD = [(question, value) for question, (_, _, bad) in VALUES.items() for value in bad]
GOOGLE = [("goog-mlflow", "goog"), ("my-google-bucket", "google"), ("Ab", "bucket must be 3 to 63")]


@pytest.mark.parametrize(("question", "value"), GOOD, ids=[f"{question}={value!s:.30}" for question, value in GOOD])
def test_a_good_value_is_taken(template: Path, tmp_path: Path, question: str, value: Any) -> None:
    """Names that the thing they name would take are taken."""
    render(template, tmp_path / "demo", VALUES[question][0] | {question: value}, pretend=True)


@pytest.mark.parametrize(("question", "value"), BAD, ids=[f"{question}={value!r:.30}" for question, value in BAD])
def test_a_bad_value_is_refused(template: Path, tmp_path: Path, question: str, value: Any) -> None:
    """Others are refused with one sentence that names the question and gives an example, and nothing is written."""
    with pytest.raises(ValueError, match=f"{question} must .*e\\.g\\. ") as refused:
        render(template, tmp_path / "demo", VALUES[question][0] | {question: value})
    assert str(refused.value).strip().count("\n") == 0
    assert not (tmp_path / "demo").exists() or not any((tmp_path / "demo").iterdir())


@pytest.mark.parametrize(("bucket", "words"), GOOGLE)
def test_google_has_rules_of_its_own(template: Path, tmp_path: Path, bucket: str, words: str) -> None:
    """Google refuses its own name."""
    with pytest.raises(ValueError, match=words):
        render(template, tmp_path / "demo", {"artifact_store": "gcs", "bucket": bucket})


@pytest.mark.parametrize(("question", "value"), [(name, "no-such-value") for name in CHOICES] + [("http_port", "x")])
def test_a_value_that_is_no_choice_is_refused(template: Path, tmp_path: Path, question: str, value: Any) -> None:
    """Copier itself refuses what is not offered."""
    with pytest.raises((ValueError, copier.errors.CopierError)):
        render(template, tmp_path / "demo", {question: value})
    assert not (tmp_path / "demo").exists() or not any((tmp_path / "demo").iterdir())
