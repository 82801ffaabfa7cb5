#!/bin/sh
# Brings the fixes of the template into this repository, and says so when one of them met an edit of yours.
set -eu
cd "$(dirname "$0")/.."

if command -v copier >/dev/null; then
  copier update --defaults "$@"
elif command -v uvx >/dev/null; then
  uvx copier update --defaults "$@"
else
  echo "update: error: neither copier nor uv is installed: see https://copier.readthedocs.io/" >&2
  exit 1
fi

conflicts=$(git grep -lE '^(<<<<<<<|>>>>>>>) ' -- . || true)
if [ -n "$conflicts" ]; then
  printf 'update: error: the update and your edits meet in these files; resolve the markers, then run "make up":\n%s\n' "$conflicts" >&2
  exit 1
fi
echo "update: done. Read the change with 'git diff', commit it, then run 'make up'."
