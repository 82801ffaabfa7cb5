#!/bin/bash
# Runs in a container of the new PostgreSQL, beside a server of version $OLD that listens at a socket in $SOCKETS: makes a
# new cluster in $PGDATA, copies roles, databases and rows into it, and compares both sides. Roles pass through with their
# hashed passwords, in pipes alone.
set -Eeuo pipefail
export PGUSER=postgres PGOPTIONS='-c statement_timeout=0 -c lock_timeout=0 -c idle_in_transaction_session_timeout=0'
here=/var/run/postgresql
work=$(mktemp -d)

die() {
  printf 'upgrade-postgres: error: %s\n' "$*" >&2
  exit 1
}

for _ in $(seq 60); do
  ! pg_isready --quiet --host "$SOCKETS" || break
  sleep 1
done
pg_isready --quiet --host "$SOCKETS" || die "the server of version $OLD does not start with the old data"

ask() { psql --no-psqlrc --host "$1" --dbname "$2" --tuples-only --no-align --command "$3"; }
tell() { psql --no-psqlrc --host $here --dbname "$1" --quiet --set ON_ERROR_STOP=1 --output /dev/null; }

[ "$(ask "$SOCKETS" postgres "SELECT count(*) FROM pg_tablespace WHERE spcname !~ '^pg_'")" = 0 ] ||
  die "tablespaces of your own are not copied: move their tables into pg_default first"

initdb --username postgres --pwfile /run/secrets/postgres_password --auth trust --no-sync --pgdata "$PGDATA" >/dev/null
cp "/var/lib/postgresql/$OLD/docker/pg_hba.conf" "/var/lib/postgresql/$OLD/docker/pg_ident.conf" "$PGDATA"
if grep -q '^[^#]' "/var/lib/postgresql/$OLD/docker/postgresql.auto.conf"; then
  echo "upgrade-postgres: what ALTER SYSTEM has set is not taken over: $(grep '^[^#]' "/var/lib/postgresql/$OLD/docker/postgresql.auto.conf" | sed 's/ *=.*//' | tr '\n' ' ')"
fi
pg_ctl --pgdata "$PGDATA" --wait --silent --log "$work/log" --options "-clisten_addresses= -cunix_socket_directories=$here \
  -cfsync=off -cautovacuum=off -cmax_wal_size=4GB -clog_min_error_statement=panic" start >/dev/null ||
  die "the new server does not start: $(tail -n 1 "$work/log")"
trap 'pg_ctl --pgdata "$PGDATA" --silent --mode fast stop >/dev/null' EXIT

# Some builds of PostgreSQL 17 number the versions of every column in an option that no other server knows.
known() { sed -E '/^ALTER .* ALTER COLUMN .* SET \(pg_attver=[0-9]+\);$/d'; }

# What differs from run to run, and in nothing else.
steady() { grep -Ev '^(--|\\(un)?restrict |$)'; }
roles() { pg_dumpall --host "$1" --globals-only | steady || echo "unreadable in $1"; }
about() { pg_dump --host "$1" --schema-only --create "$2" | grep -E '^(CREATE|ALTER) DATABASE ' || echo "unreadable in $1"; }
definitions() { pg_dump --host $here --schema-only "$1" | steady || echo "unreadable: $1"; }
rows() { pg_dump --host "$1" --data-only "$2" | steady || echo "unreadable in $1"; }
count() {
  ask "$1" "$2" "SELECT count(*), coalesce(sum((xpath('/row/n/text()', query_to_xml(format('SELECT count(*) AS n FROM %I.%I', schemaname, tablename), false, true, '')))[1]::text::bigint), 0)
    FROM pg_tables WHERE schemaname NOT IN ('pg_catalog', 'information_schema')"
}

roles "$SOCKETS" | grep -vx 'CREATE ROLE postgres;' | tell template1 || die "the roles cannot be copied, see above"
databases=$(ask "$SOCKETS" postgres "SELECT datname FROM pg_database WHERE datallowconn AND datname <> 'template1' ORDER BY 1")
while read -r name; do
  {
    pg_dump --host "$SOCKETS" --section pre-data --create --clean --if-exists "$name" | known | tell template1 &&
      pg_dump --host "$SOCKETS" --section data "$name" | tell "$name" &&
      pg_dump --host "$SOCKETS" --section post-data "$name" | known | tell "$name"
  } || die "the database $name cannot be copied, see above"
done <<<"$databases"
vacuumdb --host $here --all --analyze-only --quiet

cmp --silent <(roles "$SOCKETS") <(roles $here) || die "the roles are not the same on both sides"
while read -r name; do
  cmp --silent <(about "$SOCKETS" "$name") <(about $here "$name") || die "the settings of the database $name are not the same on both sides"
  # Each version writes a definition in its own words. So what the old one writes is read by the new one once more.
  encoding=$(ask "$SOCKETS" "$name" "SELECT getdatabaseencoding()")
  tell template1 <<<"CREATE DATABASE upgrade_check TEMPLATE template0 ENCODING '$encoding' LOCALE 'C'"
  pg_dump --host "$SOCKETS" --schema-only "$name" | known | tell upgrade_check || die "the tables of the database $name cannot be compared, see above"
  diff <(definitions upgrade_check) <(definitions "$name") >"$work/diff" ||
    die "the tables of the database $name are not the same on both sides: $(grep -m 1 '^[<>]' "$work/diff")"
  tell template1 <<<"DROP DATABASE upgrade_check"
  cmp --silent <(rows "$SOCKETS" "$name") <(rows $here "$name") || die "the rows of the database $name are not the same on both sides"
  IFS='|' read -r tables sum <<<"$(count $here "$name")"
  [ "$(count "$SOCKETS" "$name")" = "$tables|$sum" ] || die "the tables of the database $name have not as many rows on both sides"
  [ "$tables" = 0 ] || echo "upgrade-postgres: database $name: $tables tables with $sum rows, equal on both sides"
done <<<"$databases"

trap - EXIT
pg_ctl --pgdata "$PGDATA" --silent --mode fast --wait stop >/dev/null
initdb --sync-only --pgdata "$PGDATA" >/dev/null
