#!/bin/sh
# Makes what this stack needs and does not have yet: .env and the files of secrets/. What is there stays as it is.
#   init.sh            before another command
#   init.sh up|init    also says which settings nothing reads
#   init.sh lost       only names the secrets that are lost; NEW=1 makes them, too: 'make lost-secrets' does both
set -eu
cd "$(dirname "$0")/.."
umask 077

say() { printf 'init: %s\n' "$*"; }

# What is half changed is not touched.
if holder=$(scripts/rotating.sh); then
  echo "init: error: 'make rotate-secrets' (process $holder) is changing the secrets: wait until it has ended" >&2
  exit 1
fi

# lost: names the secrets that are not there while data are that were made with them: new ones do not fit those.
lost() {
  volumes=$(docker volume ls --quiet --filter name=cluster_ 2>/dev/null) || volumes=
  for pair in crypto_kek_passphrase:mlflow-spool webhook_encryption_key:mlflow-spool; do
    [ ! -e "secrets/${pair%%:*}" ] || continue
    ! printf '%s\n' "$volumes" | grep -qx "cluster_${pair#*:}" || echo "${pair%%:*}"
  done
}
missing=$(lost | xargs)
if [ "${1:-}" = lost ]; then
  echo "$missing"
  exit
fi
if [ -n "$missing" ] && [ -z "${NEW:-}" ]; then
  echo "init: error: lost from secrets/, and the data need it: $missing; put back your copy, or if there is none, run 'make lost-secrets'" >&2
  exit 1
fi

random() { LC_ALL=C tr -dc 'A-Za-z0-9' </dev/urandom | head -c "$1"; }

# secret NAME: writes standard input to secrets/NAME, whole or not at all, unless the file is there.
secret() {
  [ ! -e "secrets/$1" ] || return 0
  cat >"secrets/.$1.new"
  mv "secrets/.$1.new" "secrets/$1"
  say "made secrets/$1"
}

# wanted NAME TEXT: a secret that only you have. The file is made empty, and you are told what belongs in it.
wanted() {
  [ -e "secrets/$1" ] || : >"secrets/$1"
  [ -s "secrets/$1" ] || say "secrets/$1 is empty: $2"
}

# .env gets the lines of .env.example that it does not have; commented lines are defaults that live in the template.
new=no
[ -e .env ] || { : >.env && new=yes && say "made .env"; }
grep -E '^[A-Z0-9_]+=' .env.example | while IFS= read -r line; do
  key=${line%%=*}
  if ! grep -q "^$key=" .env; then
    [ -z "$(tail -c 1 .env)" ] || echo >>.env
    printf '%s\n' "$line" >>.env
  fi
done

# A new one also gets limits that fit the machine, as Docker sees it. An old one keeps what it has: 'make size' gives advice.
if [ "$new" = yes ] && machine=$(docker info --format '{{.NCPU}} {{.MemTotal}}' 2>/dev/null) &&
  fitting=$(scripts/sizing.sh "${machine% *}" "$((${machine#* } / 1048576))"); then
  printf '%s\n' "$fitting" | grep -v '^#' >>.env
fi

# What an earlier release read from .env and nothing reads any more is told, and stays: it is your file.
[ $# -eq 0 ] || sed -n 's/^\([A-Z0-9_]*\)=.*/\1/p' .env | grep -v '^COMPOSE_' | while IFS= read -r key; do
  grep -qsw -e "$key" .env.example ./*.yaml ./*.yml local.mk ||
    say "note: $key in .env is used by nothing here: take it out, if it is not yours"
done

# Containers run as the user that owns secrets/. Root would give them root's rights, so root hands the folder to another.
owner=$(sed -n 's/^STACK_UID=//p' .env | tail -n 1)
group=$(sed -n 's/^STACK_GID=//p' .env | tail -n 1)
if [ -z "$owner" ]; then
  owner=$(id -u) group=$(id -g)
  if [ "$owner" -eq 0 ]; then
    owner=${SUDO_UID:-10001} group=${SUDO_GID:-10001}
    [ "$owner" -ne 0 ] || owner=10001 group=10001
  fi
  sed -e "s/^STACK_UID=.*/STACK_UID=$owner/" -e "s/^STACK_GID=.*/STACK_GID=$group/" .env >.env.new
  mv .env.new .env
fi

mkdir -p secrets
random 40 | secret crypto_kek_passphrase
# A Fernet key: 32 random bytes in URL-safe base64.
head -c 32 /dev/urandom | base64 | tr '+/' '-_' | secret webhook_encryption_key
wanted db_password "put in the password of the database user (DB_USER in .env)"
[ -e secrets/db_ca.pem ] || : >secrets/db_ca.pem
[ -n "$(sed -n 's/^DB_HOST=//p' .env)" ] || say "DB_HOST in .env is empty: put in the address of your PostgreSQL server"
wanted s3_credentials "put in a key for the bucket as the AWS tools write it ([default], aws_access_key_id, aws_secret_access_key), or leave it empty to use the role of this machine"
random 24 | secret admin_password
: | secret htpasswd
# The stack runs as their owner and could not read a file of somebody else, e.g. of a run as root.
foreign=$(find secrets ! -user "$(id -u)" | head -n 1)
if [ -n "$foreign" ] && [ "$(id -u)" -ne 0 ]; then
  echo "init: error: $foreign belongs to another user: run 'sudo chown -R $owner:$group secrets'" >&2
  exit 1
fi
chmod 700 secrets
find secrets -type f -exec chmod 600 {} +
[ "$(id -u)" -ne 0 ] || chown -R "$owner:$group" secrets
