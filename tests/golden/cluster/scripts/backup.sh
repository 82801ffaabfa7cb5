#!/bin/sh
# Makes one backup of database and artifacts; with the word 'list' it lists those that there are.
#
#   make backup                into ./backups, or where BACKUP_FOLDER or BACKUP_TO in .env says
#   make backups KEEP=2        first removes all but the newest two, where there is no room for another one
#   make backup TO=PLACE       a folder of this machine, s3://BUCKET/PREFIX or
#                              wasbs://CONTAINER@ACCOUNT.blob.core.windows.net/PREFIX
#   ARTIFACTS=no               the database alone
#   ENCRYPT=age1…              for the private key of this public one alone; BACKUP_AGE_RECIPIENT in .env is the default
#   ENDPOINT=URL, REGION=NAME  of an S3 server that is not Amazon's, and of the bucket
#
# The key of a place elsewhere is read from secrets/other/, or else from secrets/: s3_credentials or
# azure_connection_string. An interrupted run leaves nothing but what the next one clears away.
set -eu
cd "$(dirname "$0")/.."

die() {
  printf 'backup: error: %s\n' "$*" >&2
  exit 1
}

# shellcheck source=/dev/null
. scripts/lock.sh
# shellcheck source=/dev/null
. scripts/backup-place.sh

[ -f .env ] || die "there is no .env: run 'make up' first"
to=${TO:-$(usual)}
case $to in
  *://*) ;;
  *)
    if [ "${1:-}" != list ] || [ "$to" = "$(usual)" ]; then
      (umask 077 && mkdir -p "$to") || die "the folder $to cannot be made"
      [ "$(id -u)" -ne 0 ] || chown "$(setting STACK_UID):$(setting STACK_GID)" "$to"
    fi
    ;;
esac
place "$to"
if [ "${1:-}" = list ]; then
  build
  if [ -n "${KEEP:-}" ]; then
    trap unlock EXIT
    trap 'exit 130' INT TERM
    lock backups
    set -- --keep "$KEEP"
  else
    set --
  fi
  NO_DEPS=1 stackops backups ${JSON:+--json} "$@"
  exit
fi

case ${ARTIFACTS:-yes} in
  yes) set -- ;;
  no) set -- --no-artifacts ;;
  *) die "ARTIFACTS is '$ARTIFACTS': there are yes and no" ;;
esac
[ -z "${NO_PRUNING:-}" ] || set -- "$@" --no-pruning
[ -z "${ENCRYPT:-}" ] || export BACKUP_AGE_RECIPIENT="$ENCRYPT"

trap unlock EXIT
trap 'exit 130' INT TERM
lock backup
build
stackops backup --template "$(sed -n 's/^_commit: //p' .copier-answers.yml 2>/dev/null || true)" "$@"
