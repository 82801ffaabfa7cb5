#!/bin/sh
# Loads a backup into this stack: everything is checked before anything is touched.
#
#   make restore FROM=PLACE       a folder with backups or one of them, s3://…, wasbs://… (default: as for make backup)
#   AT=latest                     which one: latest, or the beginning of its name, as in 20261125T05
#   REPLACE=1                     replace what the stack holds, after a backup of it; BACKUP=no goes without, for a database
#                                 that is damaged
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
from=${FROM:-$(setting BACKUP_TO)}
from=${from:-./backups}
at=${AT:-latest}
if [ -f "$from/manifest.json" ]; then
  at=$(basename "$(cd "$from" && pwd)") from=$(dirname "$(cd "$from" && pwd)")
fi
[ -z "${AGE_IDENTITY:-}" ] || [ -r "$AGE_IDENTITY" ] || die "AGE_IDENTITY is $AGE_IDENTITY, which cannot be read"
place "$from"

# Until the end this file says that the stack is not whole; what was running runs again, whatever happens.
unfinished=.restore.unfinished
running=''
finish() {
  unlock
  [ -z "$running" ] || compose up --detach --wait >/dev/null 2>&1 ||
    echo "restore: the stack did not start again: run 'make up'" >&2
}
trap finish EXIT
trap 'exit 130' INT TERM
lock restore
build

replace=''
[ -z "${REPLACE:-}" ] && [ ! -e "$unfinished" ] || replace=--replace
at=$(stackops restore --check --at "$at" $replace) || exit 1
if [ -n "${REPLACE:-}" ] && [ "${BACKUP:-yes}" != no ] && [ ! -e "$unfinished" ]; then
  # Older ones stay: the one that is wanted may be among them.
  (unset TO && NO_PRUNING=1 ARTIFACTS=yes scripts/backup.sh) ||
    die "what the stack holds could not be backed up, so nothing was changed; BACKUP=no goes on without"
fi

# shellcheck disable=SC2154 # backup-place.sh has it
printf 'make restore FROM=%s AT=%s REPLACE=1\n' "$where" "$at" >"$unfinished"
running=$(compose ps --status running --quiet mlflow)
compose stop mlflow
stackops restore --at "$at" --fix "${FIX:-}" || die "the restore is not finished: run it again"
running=''
compose up --detach --wait || die "the backup is loaded, but the stack did not become ready: run 'make up'"
rm -f "$unfinished"
compose exec -T mlflow stackops prove
echo "restored $at from $where"
