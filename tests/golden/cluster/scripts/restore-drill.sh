#!/bin/sh
# Loads the newest backup into a stack of its own, reads it back through that server, and removes all of it again: so a
# backup is known to be good. This stack goes on meanwhile, and nothing of it is touched.
#
#   make restore-drill FROM=PLACE AT=latest    as for make restore; AGE_IDENTITY, ENDPOINT and REGION too
#
# The stack of its own has a PostgreSQL of its own and a folder for the artifacts: it reaches nothing that this stack uses.
set -eu
cd "$(dirname "$0")/.."

die() {
  printf 'restore-drill: error: %s\n' "$*" >&2
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
[ -z "${AGE_IDENTITY:-}" ] || [ -r "$AGE_IDENTITY" ] || die "AGE_IDENTITY is $AGE_IDENTITY, which cannot be read"
place "$from"
build

# From here on another project, with volumes, networks and containers of its own. compose.override.yaml may name what
# belongs to this stack, so it is left out.
drill=cluster-drill
compose() { docker compose --progress quiet --project-name "$drill" --file compose.yaml "$@"; }

remove() {
  docker rm --force --volumes "$drill-server" "$drill-database" >/dev/null 2>&1 || true
  docker compose --progress quiet --project-name "$drill" --file compose.yaml --profile '*' down --volumes --timeout 5 >/dev/null 2>&1 ||
    echo "restore-drill: it could not be removed: docker compose --project-name $drill down --volumes" >&2
}
finish() {
  code=$?
  trap '' INT TERM HUP
  [ -z "${holds_lock:-}" ] || remove
  unlock
  exit "$code"
}
trap finish EXIT
trap 'exit 130' INT TERM HUP
lock restore-drill
remove # what a killed one has left
began=$(date +%s)

# What its containers have otherwise than those of this stack.
extra="--env DB_HOST=$drill-database --env DB_PORT=5432 --env DB_SSLMODE=disable"
extra="${extra:-} --env STACK_STORE=local --env ARTIFACT_URI=/var/tmp/artifacts --env ARTIFACT_ACCESS=proxied"

# Its database has the password of this stack's, and nobody but its own containers reaches it.
user=$(setting DB_USER) name=$(setting DB_NAME) image=$(setting POSTGRES_IMAGE)
compose run --rm -T --no-deps --entrypoint true backup </dev/null # makes the network
docker run --detach --name "$drill-database" --user "$(setting STACK_UID):$(setting STACK_GID)" --network "${drill}_edge" --env POSTGRES_USER="${user:-mlflow}" \
  --env POSTGRES_DB="${name:-mlflow}" --env POSTGRES_PASSWORD_FILE=/password \
  --volume "$PWD/secrets/db_password:/password:ro" "${image:-postgres:18.6-trixie}" >/dev/null
tries=60
until docker exec "$drill-database" pg_isready --quiet --host 127.0.0.1 --username "${user:-mlflow}"; do
  tries=$((tries - 1))
  [ "$tries" -gt 0 ] || die "its database does not start: $(docker logs --tail 1 "$drill-database" 2>&1)"
  sleep 1
done

at=$(stackops restore --check --at "$at") || exit 1
stackops restore --at "$at" || die "the backup $at cannot be restored, see above"

# The server, at no port of this machine.
# shellcheck disable=SC2086 # nothing is one word less
compose run --rm -T --no-deps ${extra:-} migrate </dev/null
# shellcheck disable=SC2086 # nothing is one word less
compose run --detach --no-deps --name "$drill-server" ${extra:-} mlflow >/dev/null </dev/null
docker exec "$drill-server" stackops ready --wait 120 || die "the server does not start with the backup $at: $(docker logs --tail 1 "$drill-server" 2>&1)"
docker exec "$drill-server" stackops prove || die "the backup $at was restored, and does not work, see above"
stackops restore --at "$at" --mark restore-drill
# shellcheck disable=SC2154 # backup-place.sh has it
echo "the backup $at in $where is good: restored, compared and used in $(($(date +%s) - began)) s"
