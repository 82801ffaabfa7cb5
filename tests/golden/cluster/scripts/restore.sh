#!/bin/sh
# Loads a backup into this stack: everything is checked before anything is touched.
#
#   make restore FROM=PLACE       a folder with backups or one of them, s3://…, wasbs://… (default: as for make backup)
#   AT=latest                     which one: latest, or the beginning of its name, as in 20261125T05
#   REPLACE=1                     replace what the stack holds, after a backup of it; BACKUP=no goes without, for a database
#                                 that is damaged
#   ONLY=artifacts                bring back what the store does not have; database and server are left alone, and with REPLACE=1
#                                 also what differs is replaced
#   AGE_IDENTITY=FILE             the private key of age, for an encrypted backup
#   FIX=NAME,…                    repairs on the way to another kind of database
#   ENDPOINT=URL, REGION=NAME     as for make backup
set -eu
cd "$(dirname "$0")/.."

die() {
  printf 'restore: error: %s\n' "$*" >&2
  exit 1
}

# shellcheck source=/dev/null
. scripts/lock.sh
# shellcheck source=/dev/null
. scripts/backup-place.sh

[ -f .env ] || die "there is no .env: run 'make init' first"
from=${FROM:-$(usual)}
at=${AT:-latest}
if [ -f "$from/manifest.json" ]; then
  at=$(basename "$(cd "$from" && pwd)") from=$(dirname "$(cd "$from" && pwd)")
fi
case ${ONLY:-} in
  '' | artifacts) ;;
  *) die "ONLY is '$ONLY': there is artifacts" ;;
esac
[ -z "${AGE_IDENTITY:-}" ] || [ -r "$AGE_IDENTITY" ] || die "AGE_IDENTITY is $AGE_IDENTITY, which cannot be read"
place "$from"

# What was running runs again, whatever happens. Else this file says that the stack is not whole.
marker=.restore.unfinished
running=''
finish() {
  if [ -n "$running" ]; then
    rm -f "$marker"
    compose up --detach --wait >/dev/null 2>&1 || echo "restore: the stack did not start again: run 'make up'" >&2
  fi
  unlock
}
trap finish EXIT
trap 'exit 130' INT TERM
# One that was interrupted goes on: no upgrade has begun since.
[ -e "$marker" ] || ! wrong=$(scripts/upgrade.sh in-the-way) || die "$wrong"
lock restore
build

# One that was interrupted goes on: it has looked already whether something would be lost.
again=''
if [ -e "$marker" ]; then
  begun=$(sed -n 's/^at=//p' "$marker")
  # shellcheck disable=SC2154 # backup-place.sh has it
  [ "$(sed -n 's/^from=//p' "$marker")" = "$where" ] || die "$(unfinished)"
  case $begun in
    "$at"*) ;;
    *) [ "$at" = latest ] || die "$(unfinished)" ;;
  esac
  at=$begun again=yes
fi
replace=''
[ -z "${REPLACE:-}$again" ] || replace=--replace
if [ -n "${ONLY:-}" ]; then
  [ -z "$again" ] || die "$(unfinished)"
  at=$(stackops restore --check --only "$ONLY" --at "$at") || exit 1
  stackops restore --only "$ONLY" --at "$at" $replace
  echo "the artifacts of $at from $where are there"
  exit
fi
at=$(stackops restore --check --at "$at" $replace) || exit 1
if [ -n "${REPLACE:-}" ] && [ "${BACKUP:-yes}" != no ] && [ -z "$again" ]; then
  # Older ones stay: the one that is wanted may be among them.
  (unset TO && NO_PRUNING=1 ARTIFACTS=yes scripts/backup.sh) ||
    die "what the stack holds could not be backed up, so nothing was changed; BACKUP=no goes on without"
fi

printf 'from=%s\nat=%s\n' "$where" "$at" >"$marker"
running=$(compose ps --status running --quiet mlflow)
compose stop mlflow
stackops restore --at "$at" --fix "${FIX:-}" || die "the restore is not finished: run it again"
running=''
rm -f "$marker"
compose up --detach --wait || die "the backup is loaded, but the stack did not become ready: run 'make up'"
compose exec -T mlflow stackops prove
echo "restored $at from $where"
