#!/bin/sh
# Puts a new server in the place of each, one after the other, with the settings of now; clients go on meanwhile.
#   make restart         the servers
#   make restart ALL=1   every service at once, which clients notice
set -eu
cd "$(dirname "$0")/.."

say() { printf 'restart: %s\n' "$*"; }

die() {
  printf 'restart: error: %s\n' "$*" >&2
  exit 1
}

compose() { docker compose --progress quiet "$@"; }

# shellcheck source=/dev/null
. scripts/lock.sh
# shellcheck source=/dev/null
. scripts/rolling.sh

! wrong=$(scripts/upgrade.sh in-the-way) || die "$wrong"
case ${ALL:-} in
  '' | 0 | no) all='' ;;
  1 | yes) all=yes ;;
  *) die "ALL is '$ALL': there are 1 and 0" ;;
esac
running=$(compose ps --status running --quiet mlflow)
# Two at a time would start the unfinished jobs of each other.
if grep -qxE 'MLFLOW_SERVER_ENABLE_JOB_EXECUTION=(true|1)' .env; then
  [ "$(wanted_servers)" = 1 ] || die "server-side jobs run in one server: set MLFLOW_REPLICAS=1 or MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false in .env"
  all=yes
fi
if [ -n "$all" ] || [ -z "$running" ]; then
  docker compose restart
  docker compose up --detach --wait
  exit
fi

trap unlock EXIT
trap 'exit 130' INT TERM
lock restart
sweep
# shellcheck disable=SC2086 # one word a server
roll "$(wanted_servers)" $running || die "no new server is ready, see above; those that are left of the others go on"
say "done"
