#!/bin/sh
# Changes the secrets of this stack, all of them or SECRET=name,group,…, while it lives on; README.md explains it.
# The work is done by stackops/rotate.py, in a container that gets secrets/ as a folder: no value passes through here.
set -eu
cd "$(dirname "$0")/.."

die() {
  printf 'rotate-secrets: error: %s\n' "$*" >&2
  exit 1
}

# name:how:group:services that read it at their start
table='
crypto_kek_passphrase:kek:keys:mlflow
webhook_encryption_key:webhook:keys:mlflow
db_password:given:database:mlflow
s3_credentials:given:store:mlflow
admin_password:plain:login:
htpasswd:hash:login:mlflow
'

compose() { docker compose --progress quiet "$@"; }

# Standard input is the new value, where somebody else issues it.
stackops() {
  # shellcheck disable=SC2086 # one word a row
  compose run --rm -T --no-deps --volume "$PWD/secrets:/rotate" mlflow rotate --only "${SECRET:-all}" "$1" $table
}

[ -f .env ] || die "there is no .env: run 'make up' first"

# One at a time; scripts/rotating.sh explains the lock.
lock=.rotate-secrets.lock
holder=$(scripts/rotating.sh) && die "another 'make rotate-secrets' (process $holder) is at work: wait until it has ended"
rm -f "$lock"
# shellcheck source=/dev/null
. scripts/lock.sh
give_back() {
  rm -f "$lock"
  unlock
}
lock rotate-secrets
trap give_back EXIT
trap 'exit 130' INT TERM
ln -s "$$" "$lock" 2>/dev/null || die "another 'make rotate-secrets' is at work: wait until it has ended"
from=/dev/null
# Who issues it, and so where it is changed first.
case ${SECRET:-} in
  db_password | database) elsewhere="the password of the database user at your PostgreSQL server" ;;
  s3_credentials | store) elsewhere="a second key for the bucket where the first one was made" ;;
  *) elsewhere= ;;
esac
if [ -n "$elsewhere" ]; then
  [ -n "${FROM:-}" ] || die "$SECRET is issued elsewhere: make $elsewhere, then 'make rotate-secrets SECRET=$SECRET FROM=FILE' (- is standard input), then delete the old one there"
  from=${FROM}
  [ "$from" != - ] || from=/dev/stdin
  [ -r "$from" ] || die "FROM is $from, which cannot be read"
fi

# An interrupted run may have left the server stopped: it is finished, whatever is running.
begun=$(find secrets -name '.*.next' -o -name '.*.old')
if [ -z "$begun" ] && [ -z "$(compose ps --status running --quiet mlflow)" ]; then
  die "the stack is not running: run 'make up' first"
fi

services=$(stackops propose <"$from") || exit 1

# Whatever happens from here on, what was running runs again.
again() {
  compose up --detach --wait --no-recreate >/dev/null 2>&1 || true
  give_back
}
trap again EXIT
case " $services " in *" mlflow "*) compose stop mlflow ;; esac
stackops switch </dev/null || exit 1
for service in $services; do
  [ "$service" = mlflow ] || compose restart --no-deps "$service"
done
if ! compose up --detach --wait --no-recreate; then
  if [ -n "$elsewhere" ]; then
    stackops put-back </dev/null
    die "the stack does not start with the new value ('docker compose logs migrate' says why); the old one is back in secrets/"
  fi
  die "the stack did not become ready with the new secrets; the old ones are kept beside them (secrets/.*.old): see 'make logs', mend it and run this again"
fi
trap give_back EXIT
stackops prove </dev/null
if [ "${SECRET:-all}" = all ]; then
  echo "the database issues db_password itself: change it there, then 'make rotate-secrets SECRET=database FROM=FILE'"
  echo "the bucket issues s3_credentials itself: make a new key there, then 'make rotate-secrets SECRET=store FROM=FILE'"
fi
case ",${SECRET:-all}," in *,all,* | *,login,* | *,admin_password,* | *,htpasswd,*) echo "rotate-secrets: the admin's new password is in secrets/admin_password" ;; esac
