#!/bin/sh
# Removes for good what users have deleted: runs, experiments and logged models, with their files in the store.
#
#   make gc                        shows what would go: what was deleted more than 30 days ago; changes nothing
#   make gc OLDER_THAN=7d APPLY=1  removes it, m, h, d or w (minutes, hours, days, weeks)
#   TRACES_OLDER_THAN=90d          traces as well, by their age: nobody need have deleted them
#   ORPHANS=1                      and files of runs, models and traces that the database does not know
#
# Users may go on working. An interrupted run is finished by the next one.
set -eu
cd "$(dirname "$0")/.."

die() {
  printf 'gc: error: %s\n' "$*" >&2
  exit 1
}

# shellcheck source=/dev/null
. scripts/lock.sh

compose() { docker compose --progress quiet "$@"; }

[ -f .env ] || die "there is no .env: run 'make up' first"
running=$(compose ps --status running --quiet mlflow)
# Where the server rests, what it needs is started.
[ -n "$running" ] || ! wrong=$(scripts/upgrade.sh in-the-way) || die "$wrong"
! wrong=$(scripts/older.sh) || die "$wrong"
set -- --older-than "${OLDER_THAN:-30d}" --traces-older-than "${TRACES_OLDER_THAN:-}"
case ${ORPHANS:-} in
  '' | 0 | no) ;;
  1 | yes) set -- "$@" --orphans ;;
  *) die "ORPHANS is '$ORPHANS': there are 1 and 0" ;;
esac
case ${APPLY:-} in
  '' | 0 | no) ;;
  1 | yes)
    set -- "$@" --apply
    trap unlock EXIT
    trap 'exit 130' INT TERM
    lock gc
    ;;
  *) die "APPLY is '$APPLY': there are 1 and 0" ;;
esac

# shellcheck disable=SC2086 # nothing is one word less
compose run --rm -T ${running:+--no-deps} mlflow gc "$@" </dev/null
if [ -n "$running" ] && [ -n "${holds_lock:-}" ]; then
  compose exec -T mlflow stackops ready --wait 30
fi
