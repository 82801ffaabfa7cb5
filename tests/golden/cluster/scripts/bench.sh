#!/bin/sh
# Measures this stack on this machine, two minutes in all: what clients write and read a second, how fast artifacts come and go.
#
#   make bench           a table, and what it means
#   make bench FOR=20    measures for 20 seconds (5 to 100) instead of 60; JSON=1 for machines
#
# It works in an experiment of its own, with at most 256 MiB of artifacts, while users go on working. Everything goes for good
# afterwards, also after Ctrl-C or an error; what a killed one has left goes with the next one.
set -eu
cd "$(dirname "$0")/.."

die() {
  printf 'bench: error: %s\n' "$*" >&2
  exit 1
}

# shellcheck source=/dev/null
. scripts/lock.sh

[ -f .env ] || die "there is no .env: run 'make up' first"
run() { docker compose --progress quiet run --rm -T --no-deps "$@" </dev/null; }
server() { run mlflow bench "$@"; }
client() { run --name cluster-bench check bench "$@"; }
stop() { docker rm --force cluster-bench >/dev/null 2>&1 || :; }
runs() {
  [ -n "$(docker compose ps --status running --quiet mlflow)" ] || die "the stack does not run: run 'make up' first"
  ! wrong=$(scripts/older.sh) || die "$wrong"
}
runs
machine=$(docker info --format '{{.NCPU}} {{.MemTotal}}')
jobs=0
! grep -qx 'MLFLOW_SERVER_ENABLE_JOB_EXECUTION=true' .env || jobs=1
servers=$(sed -n 's/^MLFLOW_REPLICAS=//p' .env | tail -n 1)
fitting=$(scripts/sizing.sh "${machine% *}" "$((${machine#* } / 1048576))" "$jobs" "${servers:-1}" 2>/dev/null | sed -n 's/^MLFLOW_WORKERS=//p')
set -- ${fitting:+--fitting "$fitting"}

# What was measured with goes, whatever happened; another Ctrl-C does not stop that.
finish() {
  ended=$?
  trap '' INT TERM
  stop
  server --remove || ended=1
  unlock
  exit "$ended"
}
lock bench
trap unlock EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
facts=$(server --look --seconds "${FOR:-60}")
trap finish EXIT
client --facts "$facts" --seconds "${FOR:-60}" ${JSON:+--json} "$@"
