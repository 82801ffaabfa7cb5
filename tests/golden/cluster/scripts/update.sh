#!/bin/sh
# Brings the fixes of the template into this repository, and says so when one of them met an edit of yours.
#   update.sh [OPTIONS OF COPIER UPDATE]
#   update.sh check                        says whether there is a newer release: exit code 0 if not, 2 if there is
set -eu
cd "$(dirname "$0")/.."

fail() {
  echo "update: error: $*" >&2
  exit 1
}

if command -v copier >/dev/null; then
  copier() { command copier "$@"; }
elif command -v uvx >/dev/null; then
  copier() { uvx copier "$@"; }
else
  fail "neither copier nor uv is installed: see https://copier.readthedocs.io/"
fi

if [ "${1:-}" = check ]; then
  code=0
  copier check-update --quiet || code=$?
  case $code in
    0) echo "update: this is the newest release" ;;
    2) echo "update: there is a newer release: 'make update' brings it in" ;;
    *) fail "the template's releases cannot be read" ;;
  esac
  exit "$code"
fi

copier update --defaults "$@"

conflicts=$(git grep -lE '^(<<<<<<<|>>>>>>>) ' -- . || true)
if [ -n "$conflicts" ]; then
  fail "the update and your edits meet in these files; resolve the markers, then run 'make upgrade':
$conflicts"
fi
echo "update: done. Read the change with 'git diff', commit it, then run 'make upgrade', or 'make up' where the stack does not run."
