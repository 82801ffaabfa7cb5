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
  volumes=$(docker volume ls --quiet --filter name=nginx-certificates_ 2>/dev/null) || volumes=
  for pair in crypto_kek_passphrase:mlflow-spool webhook_encryption_key:mlflow-spool db_password:postgres-data postgres_password:postgres-data; do
    [ ! -e "secrets/${pair%%:*}" ] || continue
    ! printf '%s\n' "$volumes" | grep -qx "nginx-certificates_${pair#*:}" || echo "${pair%%:*}"
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

# A key pair as the AWS tools read it.
key_pair() { printf '[default]\naws_access_key_id = %s\naws_secret_access_key = %s\n' "$1" "$2"; }

read_key() { sed -n "s/^$2 *= *//p" "secrets/$1"; }

# identity NAME FILE ACTIONS: one entry of the store's list of keys.
identity() {
  printf '{"name": "%s", "credentials": [{"accessKey": "%s", "secretKey": "%s"}], "actions": [%s]}' \
    "$1" "$(read_key "$2" aws_access_key_id)" "$(read_key "$2" aws_secret_access_key)" "$3"
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
random 40 | secret postgres_password
random 40 | secret db_password
printf 'postgres:x:%s:%s::/var/lib/postgresql:/bin/sh\n' "$owner" "$group" | secret passwd
# The store's list has to know the keys that are made now.
for key in object_store_admin s3_credentials client_s3_credentials; do
  [ -e "secrets/$key" ] || rm -f secrets/object_store_direct.json
done
key_pair "$(random 20)" "$(random 40)" | secret object_store_admin
key_pair "$(random 20)" "$(random 40)" | secret s3_credentials
key_pair "$(random 20)" "$(random 40)" | secret client_s3_credentials
{
  printf '{"identities": [\n  '
  identity admin object_store_admin '"Admin", "Read", "Write", "List", "Tagging"'
  printf ',\n  '
  identity server s3_credentials '"Read:nginx-certificates-artifacts", "Write:nginx-certificates-artifacts", "List:nginx-certificates-artifacts", "Tagging:nginx-certificates-artifacts"'
  printf ',\n  '
  identity client client_s3_credentials '"Read:nginx-certificates-artifacts", "Write:nginx-certificates-artifacts", "List:nginx-certificates-artifacts", "Tagging:nginx-certificates-artifacts"'
  printf '\n]}\n'
} | secret object_store_direct.json
random 24 | secret admin_password
random 40 | secret flask_secret_key
scripts/certificate.sh
# The stack runs as their owner and could not read a file of somebody else, e.g. of a run as root.
foreign=$(find secrets ! -user "$(id -u)" | head -n 1)
if [ -n "$foreign" ] && [ "$(id -u)" -ne 0 ]; then
  echo "init: error: $foreign belongs to another user: run 'sudo chown -R $owner:$group secrets'" >&2
  exit 1
fi
chmod 700 secrets
find secrets -type f -exec chmod 600 {} +
[ "$(id -u)" -ne 0 ] || chown -R "$owner:$group" secrets
