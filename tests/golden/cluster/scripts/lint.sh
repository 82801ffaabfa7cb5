#!/bin/sh
# Checks the files of this repository: Compose's own parser, then the hooks of .pre-commit-config.yaml.
set -eu
cd "$(dirname "$0")/.."

if command -v docker >/dev/null; then
  docker compose config --quiet
fi
if command -v pre-commit >/dev/null; then
  pre-commit run --all-files
elif command -v uvx >/dev/null; then
  uvx pre-commit run --all-files
else
  echo "lint: error: neither pre-commit nor uv is installed: see https://pre-commit.com/#install" >&2
  exit 1
fi
