#!/bin/sh
# Runs before the service metrics, at every start: lets PostgreSQL count its statements, in the database postgres, where no
# backup of MLflow's own meets it, and lets the server's role read the counts. The password goes into no command line.
set -eu
umask 077
printf '*:*:*:*:%s\n' "$(sed 's/[\\:]/\\&/g' /run/secrets/postgres_password)" >/tmp/pgpass
export PGPASSFILE=/tmp/pgpass PGCONNECT_TIMEOUT=10
psql -v ON_ERROR_STOP=1 -qX --host postgres --username postgres --dbname postgres <<'SQL'
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS pg_stat_statements;
ALTER EXTENSION pg_stat_statements UPDATE;
GRANT CONNECT ON DATABASE postgres TO mlflow;
SQL
