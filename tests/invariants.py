"""What holds for every rendered stack, whatever was answered: each check takes a tree and returns its faults.

A fault is one line: where, and what is wrong. tests/test_the_checks.py plants each kind of fault and expects it to
be found, so that no check passes because it cannot fail.
"""

import configparser
import functools
import json
import posixpath
import re
import tomllib
from collections.abc import Callable, Iterator
from typing import Any

import yaml
from combinations import Answers
from rendering import Tree

Check = Callable[[Tree], list[str]]

# Copied byte for byte from the package index's metadata: they name whatever MLflow itself depends on.
LOCK_FILE = re.compile(r"mlflow/requirements/[a-z0-9]+\.txt")


# --- Which file exists when -------------------------------------------------------------------------------------

ALWAYS = {
    ".copier-answers.yml",
    ".dockerignore",
    ".editorconfig",
    ".env.example",
    ".gitattributes",
    ".github/workflows/ci.yml",
    ".github/workflows/update.yml",
    ".gitignore",
    ".pre-commit-config.yaml",
    ".yamllint",
    "Makefile",
    "NOTES.md",
    "README.md",
    "renovate.json",
    "compose.yaml",
    "mlflow/Dockerfile",
    "mlflow/requirements.extra.txt",
    "mlflow/requirements/base.in",
    "mlflow/requirements/base.txt",
    "mlflow/requirements/build.in",
    "mlflow/requirements/build.txt",
    "mlflow/requirements/left-out.in",
    "mlflow/requirements/transfer.in",
    "mlflow/requirements/transfer.txt",
    "scripts/artifacts-move.sh",
    "scripts/backup-place.sh",
    "scripts/bench.sh",
    "scripts/backup.sh",
    "scripts/doctor.sh",
    "scripts/eject.sh",
    "scripts/init.sh",
    "scripts/lint.sh",
    "scripts/gc.sh",
    "scripts/lock.sh",
    "scripts/logs.sh",
    "scripts/lost-secrets.sh",
    "scripts/migrate.sh",
    "scripts/older.sh",
    "scripts/other-stack.sh",
    "scripts/restore-drill.sh",
    "scripts/restore.sh",
    "scripts/upgrade.sh",
    "scripts/rotate-secrets.sh",
    "scripts/rotating.sh",
    "scripts/size.sh",
    "scripts/sizing.sh",
    "scripts/up.sh",
    "scripts/update.sh",
    "scripts/url.sh",
    "stackops/pyproject.toml",
    "transfer/Dockerfile",
    "transfer/ruff.toml",
    *(f"transfer/artifacts_move/{name}.py" for name in ("__init__", "__main__", "copying", "stores")),
    *(f"transfer/artifacts_move/{name}.py" for name in ("azure", "gcs", "local", "s3")),
}
MIGRATION = (
    "catalogue", "hazards", "load", "older", "pgloader", "repair", "source", "staging", "target", "values", "verify",
)  # fmt: skip
ROTATION = "stackops/stackops/rotation"
SELF_HOSTED = ("minio", "seaweedfs")
S3_STORES = (*SELF_HOSTED, "s3")


def expected_files(answers: Answers) -> set[str]:
    """Return the files that a stack with these answers has, but for the core of stackops."""
    backend, store, auth = answers["backend"], answers["artifact_store"], answers["auth"]
    files = set(ALWAYS) | {
        f"stackops/stackops/migration/{n}.py" for n in ("__init__", "files", "prepare", "report", "switches")
    }
    if backend == "sqlite":
        files |= {"stackops/stackops/backends/sqlite.py", "stackops/stackops/movein.py"}
    else:
        files |= {"stackops/stackops/backends/postgres.py", *_locked("postgres")}
        files |= {f"pgloader/{name}" for name in ("Dockerfile", "entrypoint.sh", "migration.load")}
        files |= {"transfer/postgres-client.sh"}
        files |= {"stackops/stackops/migrate.py"}
        files |= {f"stackops/stackops/migration/{name}.py" for name in MIGRATION}
    if backend == "managed":
        files |= {"stackops/stackops/backends/replica.py"}
    if backend == "postgres":
        files |= {"postgres/initdb.d/10-mlflow.sh", f"{ROTATION}/role.py"}
        files |= {"postgres/upgrade.sh", "scripts/upgrade-postgres.sh"}
    if backend == "managed" or store in ("s3", "azure", "gcs") or auth == "oidc":
        files |= {f"{ROTATION}/given.py"}
    if store not in SELF_HOSTED:  # where it is elsewhere, 'make restore-drill' uses a folder
        files |= {"stackops/stackops/stores/local.py"}
    if store in S3_STORES:
        files |= {"stackops/stackops/stores/s3.py", *_locked("s3")}
    if answers["artifact_access"] == "presigned" or (answers["artifact_access"] == "direct" and store in SELF_HOSTED):
        files |= {"stackops/stackops/stores/presigned.py"}
    if store in ("azure", "gcs"):
        files |= {f"stackops/stackops/stores/{store}.py", *_locked(store)}
    if store in SELF_HOSTED:
        files |= {"object-store/Dockerfile", f"{ROTATION}/pair.py"}
    if store == "minio":
        files |= {"object-store/init.sh", "object-store/policy.json"}
    if store == "seaweedfs":
        files |= {"stackops/stackops/bucket.py", f"{ROTATION}/keylist.py"}
    if answers["reverse_proxy"] == "none" or (backend, store) == ("sqlite", "local"):
        files |= {"stackops/stackops/access.py"}
    if answers["reverse_proxy"] == "nginx":
        files |= {"nginx/nginx.conf", "nginx/templates/mlflow.conf.template", "nginx/local.d/README.md"}
    if backend != "sqlite" and answers["reverse_proxy"] != "none":
        files |= {"scripts/restart.sh", "scripts/rolling.sh"}
    if auth != "none":
        files |= {"scripts/users.sh", "stackops/stackops/limiter.py"}
    if auth in ("basic", "mlflow"):
        files |= {"stackops/stackops/user.py"}
    if answers["reverse_proxy"] == "caddy":
        files |= {"caddy/Caddyfile", "caddy/Dockerfile", "caddy/local.d/README.md"}
    if answers["tls"] == "self-signed":
        files |= {"scripts/certificate.sh"}
    if auth == "basic":
        files |= {*(f"stackops/stackops/{name}.py" for name in ("htpasswd", "login")), *_locked("basic")}
        files |= {f"{ROTATION}/hash.py"}
    if auth in ("mlflow", "oidc"):
        files |= {*(f"stackops/stackops/{name}.py" for name in ("accounts", "guard", "grant")), *_locked("auth")}
        files |= {f"{ROTATION}/account.py"}
    if auth == "oidc":
        files |= {f"stackops/stackops/{name}.py" for name in ("sso", "token")}
        files |= {"scripts/token.sh", "nginx/15-identity-key.envsh"}
    if answers.get("backups"):
        files |= {"stackops/stackops/schedule.py"}
    if answers.get("monitoring"):
        files |= watching_files(answers)
    if (backend, store) == ("sqlite", "local"):
        files |= {"scripts/local.sh"}
    if answers.get("kubernetes", "none") != "none":
        files |= cluster_files(answers)
    return files


def cluster_files(answers: Answers) -> set[str]:
    """Return the files for a cluster."""
    backend, store = answers["backend"], answers["artifact_store"]
    files = {"scripts/k8s.sh", ".github/workflows/kubernetes.yml"}
    base = ["kustomization.yaml", "config.env", "namespace.yaml", "serviceaccount.yaml", "maintenance.yaml"]
    base += ["deployment.yaml", "service.yaml", "pdb.yaml", "networkpolicy.yaml"]
    components = ["migrate/job", "gc-cronjob/cronjob", "httproute/httproute", "ingress/ingress"]
    components += ["external-secrets/external-secret"]
    if backend == "sqlite" or store == "local":
        base += ["data.yaml"]
    else:
        components += ["hpa/hpa", "jobs-singleton/deployment"]
        files |= {"k8s/components/jobs-singleton/config.env"}
    if answers["reverse_proxy"] == "nginx":
        base += ["nginx.yaml"]
        files |= {"nginx/kustomization.yaml", "nginx/50-cluster.sh"}
    if answers["auth"] == "oidc":
        base += ["oauth2-proxy.yaml", "oauth2-proxy.env"]
        files |= {f"k8s/overlays/{overlay}/oauth2-proxy.env" for overlay in ("dev", "production")}
    if backend == "postgres":
        components += ["postgres/postgres", "cnpg-cluster/cluster"]
        files |= {"postgres/kustomization.yaml"}
    if store in SELF_HOSTED:
        components += ["object-store/object-store"]
    if store == "minio":
        files |= {"object-store/kustomization.yaml"}
    if answers.get("backups"):
        components += ["backup-cronjob/cronjob", "backup-cronjob/volume"]
    if answers.get("monitoring"):
        components += ["servicemonitor/servicemonitor"]
    files |= {f"k8s/base/{name}" for name in base} | {f"k8s/components/{name}.yaml" for name in components}
    files |= {f"k8s/components/{name.split('/')[0]}/kustomization.yaml" for name in components}
    for overlay in ("dev", "production"):
        files |= {f"k8s/overlays/{overlay}/kustomization.yaml", f"k8s/overlays/{overlay}/config.env"}
    return files


def watching_files(answers: Answers) -> set[str]:
    """Return the files with which a stack is watched."""
    database = "sqlite" if answers["backend"] == "sqlite" else "postgres"
    names = ("Dockerfile", ".dockerignore", "prometheus.yml", "alerts.yml", "alerts_test.yml", "local.d/README.md")
    names += ("grafana/datasources/prometheus.yml", "grafana/dashboards/files.yml")
    shown = ["server", "backups", database]
    looked_at = ["__init__", "disks", "readiness", "saved", "workers", database]
    if answers["tls"] != "none":
        shown, looked_at = [*shown, "certificate"], [*looked_at, "certificate"]
    if answers["reverse_proxy"] == "nginx":
        shown, looked_at = [*shown, "nginx"], [*looked_at, "nginx"]
    if answers["reverse_proxy"] == "caddy":
        shown.append("caddy")
    if answers["artifact_store"] == "seaweedfs":
        shown.append("store")
    if answers["artifact_store"] == "minio" and answers["artifact_access"] == "proxied":
        shown.append("minio")
    return {
        *(f"monitoring/{name}" for name in names),
        *(f"monitoring/grafana/dashboards/{name}.json" for name in shown),
        *(f"stackops/stackops/watching/{name}.py" for name in looked_at),
        *(f"stackops/stackops/{name}.py" for name in ("counting", "metrics")),
        *_locked("metrics"),
        *({"postgres/statistics.sh"} if answers["backend"] == "postgres" else ()),
    }


def _locked(name: str) -> set[str]:
    return {f"mlflow/requirements/{name}.in", f"mlflow/requirements/{name}.txt"}


# The parts of stackops that belong to one answer; everything else in it is its core and always there.
STACKOPS_PARTS = re.compile(
    r"stackops/stackops/(backends|stores)/(?!__init__|relay)\w+\.py|stackops/stackops/"
    r"watching/\w+\.py|stackops/stackops/"
    r"((access|counting|metrics|bucket|user|limiter|htpasswd|login|accounts|guard|grant|migrate|movein|schedule|sso|token)\.py|migration/\w+\.py|"
    r"rotation/(account|given|hash|keylist|pair|role)\.py)"
)


def file_set(tree: Tree) -> list[str]:
    """The files are those of the table above."""
    expected = expected_files(tree.answers)
    core = {name for name in tree.files if name.startswith("stackops/") and not STACKOPS_PARTS.fullmatch(name)}
    there = set(tree.files) - core | (core & expected)
    found = [f"{name}: is there, but nothing that was chosen needs it" for name in sorted(there - expected)]
    return found + [f"{name}: is missing" for name in sorted(expected - there)]


# --- Text -------------------------------------------------------------------------------------------------------

# What other languages write with braces: GitHub's expressions, Go templates of `docker --format`, pgloader's mustache.
FOREIGN = {
    ".github/workflows/": re.compile(r"\$\{\{ [a-zA-Z_.| ]+ \}\}"),
    "monitoring/": re.compile(r"\{\{ ?[$.a-zA-Z |]+ ?\}\}"),
    "scripts/": re.compile(r"\{\{((range |println |index )?\.[A-Za-z.]*( \"[a-z._-]+\")?|end)\}\}"),
    "pgloader/": re.compile(r"\{\{[A-Z_]+\}\}"),
}
TEMPLATE_CODE = re.compile(r"\{\{|\{%|%\}|\{#")  # '}}' alone ends nested variables of shell and Compose


def leftover_template_code(tree: Tree) -> list[str]:
    """No Jinja is left."""
    return _per_line(tree, _template_code)


def _template_code(name: str, line: str) -> str | None:
    if name.endswith(".py"):
        return None  # doubled braces are Python's too; these files are no templates, test_every_combination says so
    for folder, pattern in FOREIGN.items():
        if name.startswith(folder):
            line = pattern.sub("", line)
    line = line.replace("${#", "")  # the length of a shell variable
    return f"template code is left: {line.strip()}" if TEMPLATE_CODE.search(line) else None


def untidy_text(tree: Tree) -> list[str]:
    """UTF-8, LF, no blank at a line's end, no hole, one newline at the end, and the indentation of .editorconfig."""
    styles = editor_styles(tree.files[".editorconfig"])
    found = []
    for name, text in tree.files.items():
        if not LOCK_FILE.fullmatch(name):
            found += [f"{name}: {fault}" for fault in _untidy(text, name.endswith(".py"), styles(name))]
    return found


@functools.cache
def _untidy(text: str, python: bool, style: tuple[str, int]) -> tuple[str, ...]:
    found = []
    if any("\ud800" <= character <= "\udfff" for character in text):
        found.append("is not UTF-8")
    if "\r" in text or "\ufeff" in text:
        found.append("has a carriage return or a byte-order mark")
    if not text.endswith("\n") or text.endswith("\n\n") or text.startswith("\n"):
        found.append("does not start with text and end with one newline")
    if not python and "\n\n\n" in text:
        found.append(f"two blank lines in a row at line {text[: text.index(chr(10) * 3)].count(chr(10)) + 2}")
    lines = text.splitlines()
    found += [f"line {number}: blanks at its end" for number, line in enumerate(lines, 1) if line != line.rstrip()]
    kind, size = style
    if kind == "space":
        found += [f"line {number}: starts with a tab" for number, line in enumerate(lines, 1) if line.startswith("\t")]
    if size and (steps := [len(line) - len(line.lstrip(" ")) for line in lines if re.match(r" +[^ *#]", line)]):
        found += [f"is indented by {min(steps)}, and .editorconfig says {size}"] * (min(steps) != size)
    return tuple(found)


@functools.cache
def editor_styles(editorconfig: str) -> Callable[[str], tuple[str, int]]:
    """Return the function that gives a file's indentation: tabs or spaces, and how many (0: whatever it likes)."""
    parser = configparser.ConfigParser(interpolation=None)
    parser.read_string("[top]\n" + editorconfig)

    def style(name: str) -> tuple[str, int]:
        base, kind, size = posixpath.basename(name), "space", 0
        for section in parser.sections():
            pattern = re.escape(section).replace(r"\*", ".*").replace(r"\{", "(").replace(r"\}", ")").replace(",", "|")
            if section == "top" or not re.fullmatch(pattern, base):
                continue
            kind = parser[section].get("indent_style", kind)
            size = parser[section].getint("indent_size", size)
        # Where every line starts with structure; other formats indent text as it reads best.
        strict = base.endswith((".yaml", ".yml", ".json", ".sh", ".py", ".conf", ".template"))
        return kind, size if strict and kind == "space" else 0

    return style


SECRETS = (
    ("a private key", re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY")),
    ("an AWS key", re.compile(r"\b(AKIA|ASIA)[0-9A-Z]{16}\b")),
    ("a token", re.compile(r"\b(gh[pousr]_[A-Za-z0-9]{20,}|glpat-[\w-]{20,}|eyJ[\w-]{20,}\.)")),
    ("a password in a URL", re.compile(r"://[^\s/:@$%{]*:[^\s/:@$%{]+@")),
    (
        "a password in a line",
        re.compile(
            r"(?i)(?:password|passwd|secret|token|passphrase|access_?key|api_?key)[\w.-]*"
            r"[\"']?\s*[:=]\s*[\"']?(?![\"']?[$/<%(\[{])(?=[\w+/=-]*\d)[\w+/=!@#-]{8,}"
        ),
    ),
)


def secret_literals(tree: Tree) -> list[str]:
    """No password, key or token is written down."""
    return _per_line(tree, _secret)


def _secret(_: str, line: str) -> str | None:
    return next((f"looks like {what}: {line.strip()}" for what, pattern in SECRETS if pattern.search(line)), None)


def _per_line(tree: Tree, fault: Callable[[str, str], str | None]) -> list[str]:
    files = [(name, text) for name, text in tree.files.items() if not LOCK_FILE.fullmatch(name)]
    return [found for name, text in files for found in _faults_of_lines(name, text, fault)]


@functools.cache
def _faults_of_lines(name: str, text: str, fault: Callable[[str, str], str | None]) -> tuple[str, ...]:
    lines = enumerate(text.splitlines(), 1)
    return tuple(f"{name}:{number}: {what}" for number, line in lines if (what := fault(name, line)))


# --- No word of an unchosen part --------------------------------------------------------------------------------

# What a part is called, and when it may be named. Searched in paths and in texts.
WORDS: dict[str, tuple[Callable[[Answers], bool], str]] = {
    "sqlite": (lambda a: a["backend"] == "sqlite", r"sqlite"),
    "PostgreSQL": (lambda a: a["backend"] != "sqlite", r"postgres|psycopg|pgpass|pgloader|libpq|\bpsql\b|\bpg_"),
    "our own PostgreSQL": (lambda a: a["backend"] == "postgres", r"postgres-data|\bPOSTGRES_|initdb|postgres_password"),
    "a managed PostgreSQL": (lambda a: a["backend"] == "managed", r"managed (postgres|database)|db_ca\.pem"),
    "local artifacts": (lambda a: a["artifact_store"] == "local", r"/data/artifacts|artifacts on this machine"),
    "MinIO": (lambda a: a["artifact_store"] == "minio", r"minio|\bsilo\b|\bmc\b"),
    "SeaweedFS": (lambda a: a["artifact_store"] == "seaweedfs", r"seaweed|\bweed\b"),
    "our own object store": (lambda a: a["artifact_store"] in SELF_HOSTED, r"object[-_]store|STORE_(IMAGE|MEMORY)"),
    "S3": (lambda a: a["artifact_store"] in S3_STORES, r"(\b|_)s3(\b|_)|\bboto|\baws|\barn:"),
    "Azure": (lambda a: a["artifact_store"] == "azure", r"azure|wasbs|blob\.core|blob storage"),
    "Google": (lambda a: a["artifact_store"] == "gcs", r"(\b|_)gcs(\b|_)|\bgs:|google"),
    "backups by the clock": (lambda a: bool(a.get("backups")), r"backup-schedule|BACKUP_SCHEDULE|by the clock"),
    "watching": (
        lambda a: bool(a.get("monitoring")),
        r"prometheus|promtool|grafana|monitoring[/-]|\balarms\b",
    ),
    "a cluster": (
        lambda a: a.get("kubernetes", "none") != "none",
        r"kubernetes(?!: none)|kubectl|kustomiz|\bk8s\b",
    ),
    "a way into our store": (
        lambda a: (
            a["artifact_access"] != "proxied" and a["artifact_store"] in SELF_HOSTED and not a.get("store_domain")
        ),
        r"STORE_PORT",
    ),
    "signed links": (
        lambda a: (
            a["artifact_access"] == "presigned"
            or (a["artifact_access"] == "direct" and a["artifact_store"] in SELF_HOSTED)
        ),
        r"the server signs",
    ),
    "a client's key": (
        lambda a: a["artifact_access"] == "direct" and a["artifact_store"] in SELF_HOSTED,
        r"client_s3_credentials",
    ),
    "direct access": (lambda a: a["artifact_access"] == "direct", r"artifact_access: direct"),
    "presigned links": (
        lambda a: a["artifact_access"] == "presigned",
        r"artifact_access: presigned",
    ),
    "a way past the server": (lambda a: a["artifact_access"] != "proxied", r"artifacts go straight"),
    "nginx": (lambda a: a["reverse_proxy"] == "nginx", r"nginx"),
    "Caddy": (lambda a: a["reverse_proxy"] == "caddy", r"caddy"),
    "a certificate": (lambda a: a["tls"] != "none", r"HTTPS_PORT|tls_ca\.pem|\b8443\b"),
    "a certificate of our own making": (
        lambda a: a["tls"] == "self-signed",
        r"openssl is not installed|certificate\.sh",
    ),
    "a certificate that was brought": (lambda a: a["tls"] == "files", r"secrets/tls\.(pem|key) is empty"),
    "a certificate from an authority": (lambda a: a["tls"] == "acme", r"\bacme\b|ACME_|caddy-data"),
    "a prefix": (lambda a: bool(a["url_prefix"]), r"X-Forwarded-Prefix|strips the prefix"),
    "the proxy's login": (lambda a: a["auth"] == "basic", r"htpasswd|/stackops/login|libpass"),
    "single sign-on": (lambda a: a["auth"] == "oidc", r"oidc|oauth2|single sign-on|\bsso\b|identity_key|openid"),
    "MLflow's login": (
        lambda a: a["auth"] in ("mlflow", "oidc"),
        r"flask[_-](secret|wtf)|accounts\.py|users and permissions",
    ),
    "a login": (lambda a: a["auth"] != "none", r"(?<!GF_SECURITY_)admin_password"),
    "users": (lambda a: a["auth"] in ("basic", "mlflow"), r"user-add"),
    "permissions": (lambda a: a["auth"] in ("mlflow", "oidc"), r"make grant"),
    "make local": (
        lambda a: (a["backend"], a["artifact_store"]) == ("sqlite", "local"),
        r"make local|local-(bench|check|migrate)",
    ),
}
PATTERNS = {part: re.compile(words, re.IGNORECASE) for part, (_, words) in WORDS.items()}

# Where a part may be named that was not chosen, and why.
ALLOWED: tuple[tuple[str, str, re.Pattern[str]], ...] = (
    # Rows come from a SQLite file into PostgreSQL: what moves them, and the README's section about it.
    ("sqlite", "pgloader/", re.compile(r"(?s).*")),
    ("sqlite", "stackops/stackops/migrat", re.compile(r"(?s).*")),
    ("sqlite", "scripts/migrate.sh", re.compile(r"(?s).*")),
    ("sqlite", "README.md", re.compile(r"(?ms)^## Move in$.*?(?=^## )")),
    ("sqlite", "compose.yaml", re.compile(r"(?m)^  # 'make migrate ENGINE=pgloader'.*\n  pgloader:$")),
    # 'make artifacts-move' is about the stores that were not chosen; its journal is a SQLite file.
    *(
        (part, path, re.compile(r"(?s).*"))
        for part in ("local artifacts", "our own object store", "S3", "Azure", "Google", "sqlite")
        for path in ("transfer/", "scripts/artifacts-move.sh", "mlflow/requirements/transfer.in")
    ),
    # MLflow's own exporter, which an owner may switch on.
    ("watching", "stackops/stackops/preload.py", re.compile(r'(?m)^    "MLFLOW_EXPOSE_PROMETHEUS".*$')),
    # So are places for backups; and a backup of SQLite is loaded into PostgreSQL.
    *(
        (part, path, re.compile(r"(?s).*"))
        for part in ("S3", "Azure", "Google")
        for path in ("scripts/backup", "scripts/restore.sh")
    ),
    ("sqlite", "stackops/stackops/saving/across.py", re.compile(r"(?s).*")),
    # PostgreSQL's own programs, which make a backup, come from its image; a drill has a server of its own.
    ("our own PostgreSQL", "scripts/restore-drill.sh", re.compile(r"\bPOSTGRES_\w+")),
    ("our own PostgreSQL", "", re.compile(r"\bPOSTGRES_IMAGE\b")),
    # stackops reads the login's password in its core, for whichever of the two logins there is.
    ("a login", "stackops/", re.compile(r"(?s).*")),
    # One module speaks to both kinds of PostgreSQL.
    ("a managed PostgreSQL", "stackops/stackops/backends/postgres.py", re.compile(r"(?s).*")),
)


def words_of_other_choices(tree: Tree) -> list[str]:
    """Nothing in the tree names a part that was not chosen."""
    chosen = {part for part, (is_chosen, _) in WORDS.items() if is_chosen(tree.answers)}
    found = []
    for name, text in tree.files.items():
        text = "" if LOCK_FILE.fullmatch(name) else text
        found += [
            f"{name}{where}: names {part}, which was not chosen"
            for part, where in _named(name, text)
            if part not in chosen
        ]
    return found


@functools.cache
def _named(name: str, text: str) -> tuple[tuple[str, str], ...]:
    """Return which parts a file names, each with where it does so first."""
    found = []
    for part, pattern in PATTERNS.items():
        rest = text
        for allowed, path, region in ALLOWED:
            if allowed == part and name.startswith(path):
                rest = region.sub(lambda match: "\n" * match[0].count("\n"), rest)
        if pattern.search(name) and not name.startswith("transfer/"):
            found.append((part, " (its name)"))
        elif hit := pattern.search(rest):
            number = rest.count("\n", 0, hit.start()) + 1
            found.append((part, f":{number}: '{rest.splitlines()[number - 1].strip()[:90]}'"))
    return tuple(found)


# --- compose.yaml, as written -----------------------------------------------------------------------------------


@functools.cache
def load_yaml(text: str) -> Any:
    """Parse one YAML document."""
    return yaml.load(text, yaml.CSafeLoader)


def compose_declarations(tree: Tree) -> list[str]:
    """Every volume, network and secret that is declared is used and the other way round; every dependency exists."""
    model = load_yaml(tree.files["compose.yaml"])
    services: dict[str, dict[str, Any]] = model["services"]
    found = []
    for kind, used in (("volumes", _named_volumes), ("networks", _networks), ("secrets", _secrets)):
        declared, needed = set(model.get(kind) or {}), {name for body in services.values() for name in used(body)}
        found += [f"compose.yaml: {kind} {name}: declared and not used" for name in sorted(declared - needed)]
        found += [f"compose.yaml: {kind} {name}: used and not declared" for name in sorted(needed - declared)]
    for name, body in services.items():
        for target, how in (body.get("depends_on") or {}).items():
            if target not in services:
                found.append(f"compose.yaml: {name} depends on {target}, which does not exist")
            elif how["condition"] == "service_healthy" and "healthcheck" not in services[target]:
                found.append(f"compose.yaml: {name} waits for the health of {target}, which has no health check")
            elif how["condition"] == "service_completed_successfully" and services[target].get("restart") != "no":
                found.append(f"compose.yaml: {name} waits for the end of {target}, which is no job")
    anchors = set(re.findall(r"&(\w+)", tree.files["compose.yaml"]))
    aliases = set(re.findall(r"[\[ ]\*(\w+)", tree.files["compose.yaml"]))
    return found + [f"compose.yaml: anchor {name} is not used" for name in sorted(anchors - aliases)]


def _named_volumes(service: dict[str, Any]) -> Iterator[str]:
    for volume in service.get("volumes") or []:
        if not (source := volume.split(":")[0]).startswith((".", "/", "~", "$")):
            yield source


def _networks(service: dict[str, Any]) -> Iterator[str]:
    yield from () if "network_mode" in service else service.get("networks") or ["default"]


def _secrets(service: dict[str, Any]) -> Iterator[str]:
    for secret in service.get("secrets") or []:
        yield secret["source"] if isinstance(secret, dict) else secret


# --- .env.example -----------------------------------------------------------------------------------------------

SETTING = re.compile(r"#?([A-Z][A-Z0-9_]*)=(.*)")


def variables(text: str) -> Iterator[tuple[str, str, str]]:
    """Yield (name, operator, default) of each variable that a Compose text uses, also inside defaults."""
    position = 0
    while (start := text.find("${", position)) >= 0:
        if start and text[start - 1] == "$":  # '$$' is Compose's way to write one '$'
            position = start + 2
            continue
        depth, end = 1, start + 2
        while depth:
            depth += {"{": 1, "}": -1}.get(text[end], 0)
            end += 1
        match = re.fullmatch(r"(\w+)(?:(:?[-?+])(.*))?", text[start + 2 : end - 1], re.DOTALL)
        assert match, text[start:end]
        yield match[1], match[2] or "", match[3] or ""
        yield from variables(match[3] or "")
        position = end


def without_settings(text: str) -> str:
    """Return what a Compose text means when no variable is set."""
    while (start := text.rfind("${")) >= 0:  # the innermost one first
        end = text.index("}", start)
        match = re.fullmatch(r"\w+(?::?([-?+])(.*))?", text[start + 2 : end])
        assert match, text
        text = text[:start] + (match[2] if match[1] in ("-", "?") else "") + text[end + 1 :]
    return text


def settings(tree: Tree) -> list[str]:
    """Every variable that Compose uses is explained in .env.example with its true default; nothing else is there."""
    compose = "\n".join(re.sub(r"(^|\s)#.*", "", line) for line in tree.files["compose.yaml"].splitlines())
    model = load_yaml(tree.files["compose.yaml"])
    used: dict[str, set[tuple[str, str]]] = {}
    for name, operator, default in variables(compose):
        used.setdefault(name, set()).add((operator, without_settings(default)))
    # 'NAME:' without a value hands the variable through from .env.
    passed = {
        name
        for body in (*model["services"].values(), *(model[key] for key in model if key.startswith("x-")))
        for name, value in (body.get("environment") or {}).items()
        if value is None
    }
    scripts = "\n".join(text for name, text in tree.files.items() if name.startswith("scripts/"))

    found, shown = [], {}
    for block in tree.files[".env.example"].split("\n\n"):
        explained = False
        for line in block.splitlines():
            if match := SETTING.fullmatch(line):
                if match[1] in shown:
                    found.append(f".env.example: {match[1]} is there twice")
                shown[match[1]] = (match[2], not line.startswith("#"))
                found += [f".env.example: {match[1]} is not explained"] * (not explained)
            elif line.startswith("# "):
                explained = True
            elif line:
                found.append(f".env.example: neither a setting nor a comment: {line}")
    for name in sorted(used.keys() | passed):
        if name not in shown:
            found.append(f".env.example: {name}, which compose.yaml uses, is missing")
            continue
        defaults = {default for operator, default in used.get(name, ()) if operator == ":-"}
        required = any(operator == ":?" for operator, _ in used.get(name, ()))
        value, active = shown[name]
        if len(defaults) > 1:
            found.append(f"compose.yaml: {name} has several defaults: {sorted(defaults)}")
        elif defaults and not active and {value} != defaults:
            found.append(f".env.example: {name}={value}, and the default in compose.yaml is {defaults.pop()}")
        if required != active:
            found.append(
                f".env.example: {name} is {'' if required else 'not '}required, so 'make init' must "
                f"{'' if required else 'not '}copy it"
            )
    for name in sorted(shown.keys() - used.keys() - passed):
        if not re.search(rf"\b{name}\b", scripts):
            found.append(f".env.example: {name} is used nowhere")
    return found


# --- README.md, Makefile and links ------------------------------------------------------------------------------


def make_targets(makefile: str) -> tuple[list[str], list[str]]:
    """Return the targets that a Makefile's help prints, and all of its targets."""
    helped = re.findall(r"(?m)^([a-z][a-z0-9-]*):.*## ", makefile)
    return helped, re.findall(r"(?m)^([a-z][a-z0-9-]*):", makefile)


PHONY = r".PHONY: $(shell sed -n 's/^\([a-z0-9-]*\):.*/\1/p' Makefile)"


def makefile_targets(tree: Tree) -> list[str]:
    """Every target is phony, has one line of help, and is in the README; every script of it exists."""
    makefile, readme = tree.files["Makefile"], tree.files["README.md"]
    helped, targets = make_targets(makefile)
    # A shell command reads them from the Makefile itself.
    found = [] if PHONY in makefile.splitlines() else ["Makefile: not every target is phony"]
    found += [f"Makefile: {name} has no line of help" for name in sorted(set(targets) - set(helped))]
    found += [
        f"Makefile: {name} does not exist"
        for name in re.findall(r"\b(scripts/[\w.-]+)", makefile)
        if name not in tree.files
    ]
    named = set(_make_calls(readme))
    found += [f"README.md: does not name 'make {name}'" for name in helped if name not in named | {"help"}]
    # In every file, a target that is spoken of exists.
    for path, text in tree.files.items():
        if not LOCK_FILE.fullmatch(path):
            found += [
                f"{path}: names 'make {name}', which does not exist"
                for name in sorted(set(_make_calls(text)))
                if name not in targets
            ]
    return found


@functools.cache
def _make_calls(text: str) -> tuple[str, ...]:
    """Return the targets of every `make NAME`, quoted in prose or at the start of a line of commands."""
    return tuple(re.findall(r"""(?m)(?:[`'"]|^\s*(?:- run: |\*\s+|#?\s{2,})?)make ([a-z][a-z0-9-]*)\b""", text))


# Made by 'make init' or by the owner of the stack, or by running it; and paths inside the containers.
OWNED = re.compile(
    r"\.env|\.venv|secrets/|compose\.override\.yaml|local\.mk|nginx/local\.d/\*\.conf|caddy/local\.d/\*\.caddy"
    r"|monitoring/local\.d/\*\.(rules|scrape|alertmanagers)\.yml"
    r"|\./data|backups/|/data/.*|data/.*"
)

# What clients set for themselves, and the file of secrets/ that no container sees.
OF_CLIENTS = {"PGPASSFILE", "MLFLOW_TRACKING_SERVER_CERT_PATH", "REQUESTS_CA_BUNDLE", "AWS_CA_BUNDLE"}
NO_CONTAINERS = {"tls_ca.key"}


def readme_names(tree: Tree) -> list[str]:
    """Every file, secret and volume that the README names exists, and every node of its diagram is declared."""
    readme, model = tree.files["README.md"], load_yaml(tree.files["compose.yaml"])
    found = []
    for quoted in re.findall(r"`([^`\n]+)`", readme):
        if secret := re.fullmatch(r"(?:\./)?secrets/([\w.]+)", quoted):
            found += [f"README.md: there is no {quoted}"] * (secret[1] not in {*model["secrets"], *NO_CONTAINERS})
        elif volume := re.fullmatch(re.escape(model["name"]) + r"_([\w-]+)", quoted):
            found += [f"README.md: there is no volume {quoted}"] * (volume[1] not in model["volumes"])
        elif re.fullmatch(r"(\.[a-z][\w.-]*|[\w./*-]+/[\w.*-]*|[\w-]+\.(yaml|yml|md|mk|txt|sh|conf))", quoted):
            exists = quoted in tree.files or any(name.startswith(quoted.rstrip("/") + "/") for name in tree.files)
            found += [f"README.md: there is no {quoted}"] * (not exists and not OWNED.fullmatch(quoted))
        elif re.fullmatch(r"[A-Z][A-Z0-9_]{3,}", quoted):
            found += [f"README.md: {quoted} is no setting"] * (
                quoted not in OF_CLIENTS and not re.search(rf"(?m)^#?{quoted}=", tree.files[".env.example"])
            )
    for secret in set(re.findall(r"secrets/([\w.]+\w)", readme)) - NO_CONTAINERS:
        found += [f"README.md: there is no secrets/{secret}"] * (secret not in model["secrets"])
    diagram = re.findall(r"(?s)```mermaid\n(.*?)```", readme)
    if len(diagram) != 1:
        return [*found, "README.md: has not one diagram"]
    declared = set(re.findall(r"(?m)^ +(\w+)[\[({]", diagram[0]))
    arrows = [line for line in diagram[0].splitlines() if "--" in line]
    joined = {name for line in arrows for name in re.split(r"\s*(?:-- \w+ )?-->\s*", line.strip())}
    found += [f"README.md: the diagram joins {name}, which it does not declare" for name in sorted(joined - declared)]
    return found + [f"README.md: the diagram leaves {name} alone" for name in sorted(declared - joined)]


def broken_links(tree: Tree) -> list[str]:
    """Every relative link of a Markdown file leads to a file, and every anchor to a heading."""
    found = []
    for name, text in tree.files.items():
        if name.endswith(".md"):
            found += [f"{name}: {fault}" for fault in markdown_faults(name, text, tree.files)]
    return found


def markdown_faults(name: str, text: str, files: Any) -> list[str]:
    """Return the broken links of one Markdown text; `files` holds the path of every file that exists."""
    found, prose = [], re.sub(r"(?ms)^```.*?^```$", "", text)
    headings = {_anchor(title) for title in re.findall(r"(?m)^#+ (.*)$", prose)}
    for target in re.findall(r"\[[^\]]*\]\(([^)\s]+)\)", prose) + re.findall(r"(?m)^\[[^\]]+\]: (\S+)", prose):
        path, _, anchor = target.partition("#")
        if re.match(r"[a-z]+:", target):
            continue
        full = posixpath.normpath(posixpath.join(posixpath.dirname(name), path))
        if path and full not in files and not any(other.startswith(full + "/") for other in files):
            found.append(f"links to {target}, which does not exist")
        elif not path and anchor not in headings:
            found.append(f"links to {target}, and there is no such heading")
    return found


def _anchor(title: str) -> str:
    return re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")


# --- The rest ---------------------------------------------------------------------------------------------------


def parses(tree: Tree) -> list[str]:
    """Every file in a format with a parser is read by it."""
    found = []
    for name, text in tree.files.items():
        if fault := _parse_fault(name if name.startswith("k8s/") else name.rpartition("/")[2], text):
            found.append(f"{name}: {fault}")
    return found


@functools.cache
def _parse_fault(base: str, text: str) -> str | None:
    try:
        if base.endswith(".json"):
            json.loads(text)
        elif base.endswith(".toml"):
            tomllib.loads(text)
        elif base in (".yamllint",) or base.endswith((".yaml", ".yml")):
            # Manifests of a cluster may stand one after another.
            list(yaml.load_all(text, yaml.CSafeLoader)) if base.startswith("k8s/") else load_yaml(text)
        elif base == ".editorconfig":
            configparser.ConfigParser().read_string("[top]\n" + text)
        elif base.endswith(".py"):
            compile(text, base, "exec")
    except (ValueError, SyntaxError, yaml.YAMLError, configparser.Error) as error:
        return f"cannot be read: {error}"
    return None


def executables(tree: Tree) -> list[str]:
    """A script with a first line that names its shell can be run, and nothing else can."""
    found = []
    for name, text in tree.files.items():
        runs, script = bool(tree.modes[name] & 0o100), text.startswith("#!")
        if runs != script:
            found.append(f"{name}: {'can be run and is no script' if runs else 'is a script and cannot be run'}")
    return found


def loader_variables(tree: Tree) -> list[str]:
    """Every variable of pgloader's script comes from Compose or from its entrypoint."""
    if "pgloader/migration.load" not in tree.files:
        return []
    given = set(load_yaml(tree.files["compose.yaml"])["services"]["pgloader"]["environment"])
    given |= {
        name for line in re.findall(r"(?m)^export (.*)$", tree.files["pgloader/entrypoint.sh"]) for name in line.split()
    }
    used = set(re.findall(r"\{\{([A-Z_]+)\}\}", tree.files["pgloader/migration.load"]))
    return [f"pgloader/migration.load: nobody sets {name}" for name in sorted(used - given)]


def dockerfiles(tree: Tree) -> list[str]:
    """Each base image can be replaced by a variable, the last user is a number, and a build sees no secret."""
    found = []
    for name in (name for name in tree.files if name.endswith("Dockerfile")):
        text = tree.files[name]
        stages = {"${" + argument + "}" for argument in re.findall(r"(?m)^ARG (\w+_IMAGE)=", text)}
        for base in re.findall(r"(?m)^FROM (\S+)", text):
            found += [f"{name}: FROM {base} is no variable with a default"] * (base not in stages)
        users = re.findall(r"(?m)^USER (.*)$", text)
        if not users or not re.fullmatch(r"[1-9]\d*:[1-9]\d*", users[-1]):
            found.append(f"{name}: does not end as a numeric user without root's rights")
        if re.search(r"(?mi)^# *syntax *=", text):
            found.append(f"{name}: needs a frontend image that nobody asked for")
        if re.search(r"(?m)^(CMD|ENTRYPOINT) (?!\[)", text):
            found.append(f"{name}: starts a shell, which keeps SIGTERM to itself")
        # The stack's own code has nothing to fetch; of what is the owner's nobody else knows the hashes.
        for words in re.findall(r"pip install (.*)", text.replace("\\\n", " ")):
            own = (
                "--no-deps --no-build-isolation /stackops",
                "-c /requirements/base.txt -r /requirements/requirements.extra.txt",
            )
            if "--require-hashes" not in words and words not in own:
                found.append(f"{name}: installs {words} without asking for hashes")
        if re.search(r"(?mi)^(ARG|ENV) .*(passw|secret|token)", text):
            found.append(f"{name}: a secret would stay in the image")
    if not re.search(r"(?m)^\*$", tree.files[".dockerignore"]) or re.search(
        r"(?m)^!(\.env|secrets)", tree.files[".dockerignore"]
    ):
        found.append(".dockerignore: the build sees more than it needs")
    return found


def answers_file(tree: Tree) -> list[str]:
    """The answers file holds the answers that were given: no version, no secret, nothing computed."""
    kept = load_yaml(tree.files[".copier-answers.yml"])
    allowed = {"_src_path", "_commit", *ASKED}
    found = [f".copier-answers.yml: keeps {name}" for name in sorted(kept.keys() - allowed)]
    for name, value in kept.items():
        if not name.startswith("_") and re.search(r"\d+\.\d+\.\d+|password|secret", f"{name}={value}"):
            found.append(f".copier-answers.yml: {name}={value} is a version or a secret")
        if name in tree.answers and value != tree.answers[name]:
            found.append(f".copier-answers.yml: {name}={value}, and {tree.answers[name]!r} was given")
    return found + [f".copier-answers.yml: does not keep {name}" for name in sorted(tree.answers.keys() - kept.keys())]


ASKED = {
    "project_name",
    "store_domain",
    "purpose",
    "backend",
    "artifact_store",
    "artifact_access",
    "bucket",
    "s3_region",
    "azure_account",
    "azure_container",
    "reverse_proxy",
    "domain",
    "url_prefix",
    "tls",
    "auth",
    "http_port",
    "https_port",
    "backups",
    "monitoring",
    "kubernetes",
}

CHECKS: tuple[Check, ...] = (
    file_set,
    leftover_template_code,
    untidy_text,
    secret_literals,
    words_of_other_choices,
    compose_declarations,
    settings,
    makefile_targets,
    readme_names,
    broken_links,
    parses,
    executables,
    loader_variables,
    dockerfiles,
    answers_file,
)
