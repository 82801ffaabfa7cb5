#!/bin/sh
# Moves another MLflow's rows into this stack; with the word 'check' it only looks. README.md explains the variables:
# FROM, ARTIFACTS, REPLACE, JSON.
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
  *://*) die "FROM names a file or a folder: an MLflow's database, an mlruns folder, or another stack" ;;
  *)
    if is_stack "$from"; then
      other=$from
      meet "$other"
      case $(their STACK_BACKEND)-$(their DB_HOST) in
        sqlite-*)
          mount=$(their_data) source=/from
          [ -n "$mount" ] || die "there are no data of $from on this machine: bring the folder of its database instead"
          ;;
        *) die "$from keeps its rows in a database server, and this stack takes files: answer another backend first" ;;
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
set -- "$source" --called "$from" --artifacts "${ARTIFACTS:-}"
[ -z "${JSON:-}" ] || set -- "$@" --json
[ -z "${REPLACE:-}" ] || set -- "$@" --replace

umask 077
mkdir -p backups
[ "$(id -u)" -ne 0 ] || chown "$(sed -n 's/^STACK_UID=//p' .env):$(sed -n 's/^STACK_GID=//p' .env)" backups

stackops() {
  compose run --rm -T --volume "$mount:/from:ro" --volume "$PWD/backups:/backups" mlflow movein "$@" </dev/null
}

compose build mlflow
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

stackops "$@"

running='' their_running=''
compose up --detach --wait || die "the rows are there, but the stack did not become ready: run 'make up'"
compose exec -T mlflow stackops prove
[ -z "$other" ] || echo "the server of $other is stopped, and its data is as it was; the way back: make -C $other up"
