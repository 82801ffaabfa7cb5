"""nginx's own opinion of the rendered configuration: `nginx -t` in the image that the stack pins."""

import json
import shutil
import subprocess
import uuid
from pathlib import Path

from caddy_config import certificate
from compose_model import Model
from rendering import Tree

# Each configuration goes to the place where Compose mounts it, the image's own entrypoint fills in the settings,
# and nginx tests the result. One container for all of them.
SCRIPT = """
mv /etc/nginx /etc/nginx.original
for case in /cases/*; do
  rm -rf /etc/nginx
  cp -r /etc/nginx.original /etc/nginx
  cp -r "$case"/nginx/. /etc/nginx/
  site=$(tr ' ' '\\n' <"$case/environment" | sed -n 's/^NGINX_ENVSUBST_OUTPUT_DIR=//p')
  rm -rf "${site:=/etc/nginx/conf.d}"
  mkdir -p "$site"
  if ! env - PATH="$PATH" $(cat "$case/environment") /docker-entrypoint.sh nginx -t >/tmp/said 2>&1 ||
    grep -q -i -E '\\[(warn|emerg|alert|crit|error)\\]|ERROR:' /tmp/said; then
    grep -i -E '\\[[a-z]+\\]|ERROR:' /tmp/said | sed "s|^|${case##*/} |"
  fi
  if nginx -t 2>/dev/null && ! nginx -T 2>/dev/null | grep -q "^# configuration file $site/"; then
    echo "${case##*/} nginx.conf does not include $site"
  fi
done
echo tested
"""


def nginx_faults(models: list[tuple[Tree, Model]], scratch: Path) -> list[tuple[Tree, str]]:
    """Return what nginx says about every distinct configuration, with the environment that Compose gives it."""
    cases: dict[str, Tree] = {}
    image = ""
    for tree, model in models:
        if "nginx" not in model["services"]:
            continue
        service = model["services"]["nginx"]
        image = service["image"]
        texts = {name: text for name, text in tree.files.items() if name.startswith("nginx/")}
        environment = {key: value for key, value in service["environment"].items() if key.startswith("NGINX_")}
        if "nginx/15-identity-key.envsh" in tree.files:  # which reads a secret
            environment |= {"NGINX_IDENTITY_KEY": "x" * 40}
        cases.setdefault(json.dumps([texts, environment], sort_keys=True), tree)
    for number, (case, tree) in enumerate(cases.items()):
        folder = scratch / "cases" / f"{number:03}"
        shutil.copytree(tree.root / "nginx", folder / "nginx")
        environment = json.loads(case)[1]
        (folder / "environment").write_text(" ".join(f"{key}={value}" for key, value in environment.items()))
    assert cases, "no stack has nginx"
    (secrets := scratch / "secrets").mkdir(parents=True)
    certificate(secrets)
    command = ["docker", "run", "--rm", f"--name=mlflow-stack-test-nginx-{uuid.uuid4().hex[:8]}", "--network=none"]
    command += [
        "--add-host=mlflow:127.0.0.1",
        "--add-host=object-store:127.0.0.1",
        "--add-host=oauth2-proxy:127.0.0.1",
        "--add-host=grafana:127.0.0.1",
        f"--volume={scratch}/cases:/cases:ro",
    ]
    command += [f"--volume={secrets}:/run/secrets:ro", "--entrypoint=sh", image, "-c", SCRIPT]
    done = subprocess.run(command, capture_output=True, text=True)
    lines = done.stdout.splitlines()
    assert done.returncode == 0 and lines and lines.pop() == "tested", done.stdout + done.stderr
    trees = list(cases.values())
    return [(trees[int(line[:3])], line[4:]) for line in lines]
