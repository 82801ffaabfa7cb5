#!/bin/sh
# The password comes from its secret; pgloader takes it from the environment, so it is in no file and no command line.
set -eu
if [ ! -s "${SQLITE_FILE:=/import/mlflow.db}" ]; then
  echo "pgloader: error: there is no $SQLITE_FILE: copy the SQLite file to import/mlflow.db first" >&2
  exit 1
fi
PGPASSWORD=$(cat /run/secrets/db_password)
export PGPASSWORD SQLITE_FILE
# OpenSSL trusts a database's own authority, where one is given, in place of the public ones.
[ ! -s "${DB_SSLROOTCERT:-}" ] || export SSL_CERT_FILE="$DB_SSLROOTCERT"
exec "$@"
