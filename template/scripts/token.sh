#!/bin/sh
# Makes a token for a program to sign in with, or with --revoke takes it back. NAME= and DAYS= come from make.
set -eu
cd "$(dirname "$0")/.."

die() {
  printf 'token: error: %s\n' "$*" >&2
  exit 1
}

name=${NAME:-}
[ -n "$name" ] || die "who is it for? 'make token NAME=ci', with DAYS=30 for another time than 90 days"
[ -n "$(docker compose ps --status running --quiet mlflow)" ] || die "the server does not run: start it with 'make up'"
if [ "${1:-}" = --revoke ]; then
  exec docker compose exec -T mlflow stackops token --revoke -- "$name"
fi
token=$(docker compose exec -T mlflow stackops token --days "${DAYS:-90}" -- "$name")
printf 'export MLFLOW_TRACKING_URI=%s\n' "$(scripts/url.sh)"
printf 'export MLFLOW_TRACKING_USERNAME=%s\n' "$name"
printf 'export MLFLOW_TRACKING_PASSWORD=%s\n' "$token"
