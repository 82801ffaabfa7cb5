#!/bin/sh
# The password comes from its secret; pgloader takes it from the environment, so it is in no file and no command line.
set -eu
if [ ! -s /var/tmp/stackops-migrate/copy.db ]; then
  echo "pgloader: error: nothing is prepared to be loaded: run 'make migrate FROM=… ENGINE=pgloader'" >&2
  exit 1
fi
PGPASSWORD=$(cat /run/secrets/db_password)
export PGPASSWORD
# OpenSSL trusts a database's own authority, where one is given, in place of the public ones.
[ ! -s "${DB_SSLROOTCERT:-}" ] || export SSL_CERT_FILE="$DB_SSLROOTCERT"
exec "$@"
