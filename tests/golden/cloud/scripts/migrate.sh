#!/bin/sh
# Moves another MLflow's rows into this stack; with the word 'check' it only looks. README.md explains the variables:
# FROM, ARTIFACTS, FIX, REPLACE, ENGINE, PASSWORD_FILE, JSON.
set -eu
cd "$(dirname "$0")/.."
action=${1:-move}

die() {
  printf 'migrate: error: %s\n' "$*" >&2
  exit 1
}

from=${FROM:-}
[ -n "$from" ] || die "say what to move, for example FROM=/path/to/mlflow.db or FROM=./mlruns"
case ${ENGINE:=copy} in
  copy | pgloader) ;;
  *) die "ENGINE is '$ENGINE': there are copy and pgloader" ;;
esac

# The source is mounted read-only, with its folder: SQLite may keep a second file beside the first.
mount=
case $from in
  *://*) source=$from ;;
  *)
    if [ -d "$from" ]; then
      mount=$(cd "$from" && pwd) source=/from
    elif [ -e "$from" ]; then
      mount=$(cd "$(dirname "$from")" && pwd) source=/from/$(basename "$from")
    else
      die "there is no $from: look for the right path"
    fi
    case $mount in *:*) die "$mount has a colon in its name, which Docker cannot mount: copy the source elsewhere" ;; esac
    ;;
esac
set -- "$source" --called "$from" --artifacts "${ARTIFACTS:-}" --fix "${FIX:-}"
[ -z "${JSON:-}" ] || set -- "$@" --json
[ -z "${REPLACE:-}" ] || set -- "$@" --replace

# The password of a source database goes in by standard input: it is in no command line and no environment.
password=
if [ -n "${PASSWORD_FILE:-}" ]; then
  password=$(head -n 1 "$PASSWORD_FILE" 2>/dev/null) || die "PASSWORD_FILE $PASSWORD_FILE cannot be read"
elif [ -n "${PGPASSWORD:-}" ]; then
  password=$PGPASSWORD
fi
[ -z "$password" ] || set -- "$@" --password-stdin

umask 077
mkdir -p backups
[ "$(id -u)" -ne 0 ] || chown "$(sed -n 's/^STACK_UID=//p' .env):$(sed -n 's/^STACK_GID=//p' .env)" backups

compose() { docker compose --progress quiet "$@"; }

# With a terminal there is a progress bar.
stackops() {
  terminal=-T
  [ -n "$password" ] || [ ! -t 0 ] || [ ! -t 1 ] || terminal=
  printf '%s\n' "$password" | {
    [ -n "$terminal" ] || exec </dev/tty
    # shellcheck disable=SC2086 # nothing is one word less
    compose run --rm $terminal ${mount:+--volume "$mount:/from:ro"} --volume "$PWD/backups:/backups" mlflow migrate "$@"
  }
}

compose build mlflow
if [ "$action" = check ]; then
  stackops "$@" --check
  exit
fi

# Nobody may write while rows move. What was running before runs again afterwards, also if the move was refused.
running=$(compose ps --status running --quiet mlflow)
again() {
  [ -z "$running" ] || compose up --detach --wait >/dev/null 2>&1 || echo "migrate: the stack did not start again: run 'make up'" >&2
}
trap again EXIT
compose stop mlflow

if [ "$ENGINE" = copy ]; then
  stackops "$@"
else
  # Into a schema of its own, which takes the tables' place only if every row in it is right.
  stackops "$@" --stage prepare
  compose build pgloader
  compose run --rm -T pgloader >backups/pgloader.log 2>&1 || true
  stackops "$@" --stage finish || die "the rows are as they were; backups/pgloader.log has pgloader's own words"
fi

running=
trap - EXIT
compose up --detach --wait || die "the rows are there, but the stack did not become ready: run 'make up'"
compose exec -T mlflow stackops prove
