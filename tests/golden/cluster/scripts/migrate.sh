#!/bin/sh
# Moves another MLflow's rows into this stack; with the word 'check' it only looks. README.md explains the variables:
# FROM, ARTIFACTS, FIX, REPLACE, ENGINE, PASSWORD_FILE, PGPASSFILE, JSON.
set -eu
cd "$(dirname "$0")/.."
action=${1:-move}

die() {
  printf 'migrate: error: %s\n' "$*" >&2
  exit 1
}

# shellcheck source=/dev/null
. scripts/other-stack.sh
# shellcheck source=/dev/null
. scripts/lock.sh

compose() { docker compose --progress quiet "$@"; }

from=${FROM:-}
[ -n "$from" ] || die "say what to move, for example FROM=/path/to/mlflow.db, FROM=./mlruns or FROM=../other-stack"
case ${ENGINE:=copy} in
  copy | pgloader) ;;
  *) die "ENGINE is '$ENGINE': there are copy and pgloader" ;;
esac

# Nobody may write while rows move, here or in another stack. If the move fails, what was running before runs again.
running='' other='' their_running=''
finish() {
  leave
  [ -z "$their_running" ] || theirs up --detach --wait mlflow >/dev/null 2>&1 ||
    echo "migrate: the server of $other did not start again: run 'make -C $other up'" >&2
  [ -z "$running" ] || compose up --detach --wait >/dev/null 2>&1 ||
    echo "migrate: the stack did not start again: run 'make up'" >&2
  unlock
}
trap finish EXIT
trap 'exit 130' INT TERM
if [ "$action" != check ]; then
  ! wrong=$(scripts/upgrade.sh in-the-way) || die "$wrong"
  lock migrate
fi

# The source is mounted read-only, with its folder: SQLite may keep a second file beside the first.
mount=
case $from in
  *://*) source=$from ;;
  local)
    mount=cluster_mlflow-data source=/from
    docker volume inspect "$mount" >/dev/null 2>&1 || die "there is no volume $mount: nothing was ever kept locally here"
    ;;
  *)
    if is_stack "$from"; then
      other=$from
      meet "$other"
      case $(their STACK_BACKEND)-$(their DB_HOST) in
        sqlite-*)
          mount=$(their_data) source=/from
          [ -n "$mount" ] || die "there are no data of $from on this machine: bring the folder of its database instead"
          ;;
        postgres-postgres)
          PASSWORD_FILE=$from/secrets/db_password
          join postgres old-postgres
          source=postgresql+psycopg2://$(their DB_USER)@old-postgres:$(their DB_PORT)/$(their DB_NAME)
          ;;
        *)
          die "the database of $from is somewhere else: give its address, as in FROM=postgresql+psycopg2://$(their DB_USER)@$(their DB_HOST):$(their DB_PORT)/$(their DB_NAME)?sslmode=require PASSWORD_FILE=$from/secrets/db_password"
          ;;
      esac
    elif [ -d "$from" ]; then
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
if [ -n "$password" ]; then
  set -- "$@" --password-stdin
elif [ "$source" = "$from" ] && [ -n "${PGPASSFILE:-}" ]; then
  password=$(cat "$PGPASSFILE" 2>/dev/null) || die "PGPASSFILE $PGPASSFILE cannot be read"
  set -- "$@" --passfile-stdin
fi

umask 077
mkdir -p backups
[ "$(id -u)" -ne 0 ] || chown "$(sed -n 's/^STACK_UID=//p' .env):$(sed -n 's/^STACK_GID=//p' .env)" backups

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
[ "$ENGINE" = copy ] || [ "$action" = check ] || compose build pgloader
if [ "$action" = check ]; then
  stackops "$@" --check
  exit
fi

running=$(compose ps --status running --quiet mlflow)
compose stop mlflow
if [ -n "$other" ]; then
  their_running=$(theirs ps --status running --quiet mlflow)
  theirs stop mlflow
fi

if [ "$ENGINE" = copy ]; then
  stackops "$@"
else
  # Into a schema of its own, which takes the tables' place only if every row in it is right.
  stackops "$@" --stage prepare
  compose run --rm -T pgloader >backups/pgloader.log 2>&1 || true
  stackops "$@" --stage finish || die "the rows are as they were; backups/pgloader.log has pgloader's own words"
fi

running='' their_running=''
compose up --detach --wait || die "the rows are there, but the stack did not become ready: run 'make up'"
compose exec -T mlflow stackops prove
[ -z "$other" ] || echo "the server of $other is stopped, and its data is as it was; the way back: make -C $other up"
