#!/bin/sh
# Says what is wrong with this stack and which command mends it. Collects the facts here and lets the server's image judge them;
# without Docker, or before the first 'make up', it says what it can. JSON=1 for machines; UPDATES=1 asks the template's repository.
set -eu
cd "$(dirname "$0")/.."

serious() {
  printf 'serious  %s\n         -> %s\n' "$1" "$2"
  worst=1
}
worst=0
section() { printf '\n=== %s\n' "$1"; }
setting() { sed -n "s/^$1=//p" .env 2>/dev/null | tail -n 1; }

user=$(setting STACK_UID)
image=$(setting MLFLOW_IMAGE)
image=${image:-cluster-mlflow:3.17.2}

# Without these there is nobody to ask; what is said here needs nothing but a shell.
command -v docker >/dev/null || serious "engine: Docker is not installed" "see https://docs.docker.com/engine/install/"
[ -s .env ] || serious "settings: there is no .env" "make init"
if [ "$worst" -eq 0 ]; then
  docker info >/dev/null 2>&1 || serious "engine: no Docker engine answers" "sudo systemctl start docker   # or let $(id -un) use it: sudo usermod -aG docker $(id -un)"
  docker compose version >/dev/null 2>&1 || serious "engine: this Docker has no Compose v2" "sudo apt-get install docker-compose-plugin   # or as your system does it"
fi
if [ "$worst" -eq 0 ]; then
  docker compose config --quiet || serious "settings: compose.yaml, compose.override.yaml or .env is not valid, see above" "docker compose config --quiet"
  docker image inspect "$image" >/dev/null 2>&1 || serious "image: the server's image $image is not built" "make up"
fi
if [ "$worst" -ne 0 ]; then
  for path in secrets secrets/*; do
    # The first word of ls is the mode: neither group nor others may do anything.
    # shellcheck disable=SC2012 # nothing but the mode is read
    case $(ls -ld "$path" 2>/dev/null | cut -c 5-10) in
      ------ | "") ;;
      *) serious "secrets: others may read $path" "chmod go= $path" ;;
    esac
  done
  echo "doctor: error: something is serious: see above; the rest can be looked at when that is mended" >&2
  exit 1
fi

{
  section engine
  docker version --format '{{.Server.Version}}'
  section compose-version
  docker compose version --short
  section memory
  docker info --format '{{.MemTotal}}'
  section compose
  docker compose --profile '*' config --format json
  section containers
  containers=$(docker compose ps --all --quiet)
  # shellcheck disable=SC2086 # one word a container
  [ -z "$containers" ] || docker inspect $containers
  section env
  cat .env
  section env-mode
  # shellcheck disable=SC2012 # nothing but the mode is read
  ls -ld .env
  section example
  cat .env.example
  section answers
  cat .copier-answers.yml 2>/dev/null || true
  section tracked
  git ls-files -- .env secrets 2>/dev/null || true
  section rotating
  scripts/rotating.sh || true
  section url
  scripts/url.sh
  section published
  echo nginx
  if [ -n "${UPDATES:-}" ]; then
    section releases
    git ls-remote --tags "$(sed -n "s/^_src_path: *//p" .copier-answers.yml | sed 's|^gh:|https://github.com/|')" || true
  fi
  section live
  docker compose exec -T mlflow stackops doctor --inside 2>/dev/null || true
  section time
  date +%s
} | docker run --rm --interactive --network none --read-only --cap-drop ALL --tmpfs /tmp ${user:+--user "$user"} \
  --volume "$PWD:/stack:ro" "$image" doctor ${JSON:+--json}
