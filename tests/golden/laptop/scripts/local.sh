#!/bin/sh
# The server of this stack without Docker, in the foreground: the same locked packages, in .venv, and the data in ./data.
#   local.sh           start the server
#   local.sh COMMAND   run another stackops command beside it, e.g. check
set -eu
cd "$(dirname "$0")/.."
umask 077

die() {
  printf 'local: error: %s\n' "$*" >&2
  exit 1
}
setting() { sed -n "s/^$1=//p" .env | tail -n 1; }

[ -f .env ] || die "there is no .env: run 'make init'"
command -v python3 >/dev/null || die "python3 is not installed"

install() {
  rm -rf .venv
  echo "local: installing MLflow 3.17.2 into .venv (once; a minute or two)"
  set -- -r mlflow/requirements/base.txt
  if command -v uv >/dev/null; then
    uv venv --quiet --python '>=3.11' .venv
    export VIRTUAL_ENV="$PWD/.venv"
    uv pip install --quiet --no-deps --require-hashes "$@"
    uv pip install --quiet -c mlflow/requirements/base.txt -r mlflow/requirements.extra.txt
    uv pip install --quiet --no-deps --no-build-isolation ./stackops
  else
    python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
      die "MLflow 3.17.2 with these locked packages needs Python 3.11 or later, and this is $(python3 -V)"
    python3 -m venv .venv || die "python3 cannot make a virtual environment: install its venv package (Debian: python3-venv)"
    .venv/bin/pip install --quiet --no-deps --require-hashes "$@"
    .venv/bin/pip install --quiet -c mlflow/requirements/base.txt -r mlflow/requirements.extra.txt
    .venv/bin/pip install --quiet --no-deps --no-build-isolation ./stackops
  fi
}
# .venv is made again when a lock file, an extra package or stackops changes.
stamp=$(find mlflow/requirements* stackops -type f ! -name '*.pyc' -exec cksum {} + | sort -k 3 | cksum)
if [ "$(cat .venv/stamp 2>/dev/null)" != "$stamp" ]; then
  install
  echo "$stamp" >.venv/stamp
fi

port=$(setting HTTP_PORT)
mkdir -p data/run data/tmp
export PATH="$PWD/.venv/bin:$PATH"
export STACK_BACKEND=sqlite STACK_STORE=local STACK_AUTH=none
export DATA_DIR="$PWD/data" ARTIFACT_URI="$PWD/data/artifacts" ARTIFACT_ACCESS=proxied
export SECRETS_DIR="$PWD/secrets" RUNTIME_DIR="$PWD/data/run" TMPDIR="$PWD/data/tmp"
export MLFLOW_HOST=127.0.0.1 MLFLOW_PORT="${port:-5000}"
export MLFLOW_TRACKING_URI="http://127.0.0.1:$MLFLOW_PORT"
export MLFLOW_SERVER_ALLOWED_HOSTS="localhost,localhost:*,127.0.0.1,127.0.0.1:*"
export MLFLOW_SERVER_CORS_ALLOWED_ORIGINS="http://localhost:$MLFLOW_PORT,http://127.0.0.1:$MLFLOW_PORT"

[ $# -eq 0 ] || exec stackops "$@"
stackops prepare
echo "local: starting the server at http://127.0.0.1:$MLFLOW_PORT (Ctrl-C stops it)"
exec stackops serve
