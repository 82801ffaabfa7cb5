"""Caddy's own opinion of the rendered configuration: `caddy validate` and `caddy fmt` in the image that is pinned."""

import json
import shutil
import subprocess
import uuid
from pathlib import Path

from compose_model import Model
from rendering import Tree

# Each configuration goes to the place where Compose mounts it. One container for all of them.
SCRIPT = r"""
for case in /cases/*/; do
  rm -rf /etc/caddy && cp -r "$case/caddy" /etc/caddy && cd /etc/caddy
  while read -r line; do export "$line"; done <"$case/environment"
  caddy fmt --diff Caddyfile >/tmp/said 2>&1 || echo "$(basename "$case") caddy fmt would change it"
  caddy validate --config Caddyfile >/tmp/said 2>&1 || echo "$(basename "$case") $(tail -n 1 /tmp/said)"
  # What Caddy has to say; that nobody has put anything into local.d, and that http is not https, is no news.
  grep -E '"level":"(warn|error)"' /tmp/said | grep -v -e 'local.d/\*.caddy' -e 'only on the HTTP port' |
    sed "s|^|$(basename "$case") |"
done
echo tested
"""


def certificate(folder: Path) -> None:
    """Write the certificate that every case finds."""
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=x",
         "-addext", "subjectAltName=DNS:localhost,DNS:mlflow.example.com", "-keyout", "tls.key", "-out", "tls.pem"],
        cwd=folder, check=True, capture_output=True,
    )  # fmt: skip
    (folder / "tls.key").chmod(0o644)
    (folder / "tls_ca.pem").touch()


def caddy_faults(models: list[tuple[Tree, Model]], scratch: Path) -> list[tuple[Tree, str]]:
    """Return what Caddy says about every distinct configuration, with the environment that Compose gives it."""
    cases: dict[str, Tree] = {}
    image = ""
    for tree, model in models:
        if "caddy" not in model["services"]:
            continue
        service = model["services"]["caddy"]
        image = service["build"]["args"]["CADDY_IMAGE"]
        texts = {name: text for name, text in tree.files.items() if name.startswith("caddy/")}
        cases.setdefault(json.dumps([texts, service["environment"]], sort_keys=True), tree)
    assert cases, "no stack has Caddy"
    (secrets := scratch / "secrets").mkdir(parents=True)
    certificate(secrets)
    for number, (case, tree) in enumerate(cases.items()):
        folder = scratch / "cases" / f"{number:03}"
        shutil.copytree(tree.root / "caddy", folder / "caddy")
        environment = json.loads(case)[1]
        (folder / "environment").write_text("".join(f"{key}={value}\n" for key, value in environment.items()))
    command = ["docker", "run", "--rm", f"--name=mlflow-stack-test-caddy-{uuid.uuid4().hex[:8]}", "--network=none"]
    command += [f"--volume={scratch}/cases:/cases:ro", f"--volume={secrets}:/run/secrets:ro", "--entrypoint=sh"]
    done = subprocess.run([*command, image, "-c", SCRIPT], capture_output=True, text=True)
    lines = done.stdout.splitlines()
    assert done.returncode == 0 and lines and lines.pop() == "tested", done.stdout + done.stderr
    trees = list(cases.values())
    return [(trees[int(line[:3])], line[4:]) for line in lines]
