#!/bin/sh
# Measures the data and the machine, and says which lines of .env would fit it better. Changes nothing.
set -eu
cd "$(dirname "$0")/.."

die() {
  printf 'size: error: %s\n' "$*" >&2
  exit 1
}

setting() { sed -n "s/^$1=//p" .env | tail -n 1; }

running=$(docker compose ps --status running --quiet mlflow)
[ -n "$running" ] || die "the stack does not run: run 'make up' first"
! wrong=$(scripts/older.sh) || die "$wrong"
machine=$(docker info --format '{{.NCPU}} {{.MemTotal}}')
jobs=0
[ "$(setting MLFLOW_SERVER_ENABLE_JOB_EXECUTION)" != true ] || jobs=1
servers=$(setting MLFLOW_REPLICAS)
advised=$(scripts/sizing.sh "${machine% *}" "$((${machine#* } / 1048576))" "$jobs" "${servers:-1}")

# Each setting with what it is now: in .env, or else the default that .env.example shows.
printf '%s\n' "$advised" | while IFS= read -r line; do
  case $line in
    '#'*) why=${line#'# '} ;;
    *)
      key=${line%%=*}
      now=$(setting "$key")
      [ -n "$now" ] || now=$(sed -n "s/^#$key=//p" .env.example | tail -n 1)
      printf '%s\t%s\t%s\n' "$line" "$now" "$why"
      ;;
  esac
done | docker compose exec -T mlflow stackops size --cpus "${machine% *}" --memory "${machine#* }"
