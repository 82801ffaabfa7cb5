#!/bin/sh
# Makes anew the secrets that are lost and have no copy, so that the stack starts again with its data.
set -eu
cd "$(dirname "$0")/.."

say() { printf 'lost-secrets: %s\n' "$*"; }

die() {
  printf 'lost-secrets: error: %s\n' "$*" >&2
  exit 1
}

# shellcheck source=/dev/null
. scripts/lock.sh

[ -f .env ] || die "there is no .env: run 'make up' first"
docker info >/dev/null 2>&1 || die "no Docker engine answers: start it, or see that $(id -un) may use it"
missing=$(scripts/init.sh lost)
[ -n "$missing" ] || {
  say "nothing is lost: what data need is in secrets/"
  exit
}
! wrong=$(scripts/upgrade.sh in-the-way) || die "$wrong"
trap unlock EXIT
trap 'exit 130' INT TERM
lock lost-secrets
# Containers hold on to the files that they were started with.
docker compose --progress quiet down
NEW=1 scripts/init.sh
scripts/up.sh
case " $missing " in
  *" crypto_kek_passphrase "*) say "keys of model providers that users have stored cannot be read any more: they have to be entered again" ;;
esac
case " $missing " in
  *" webhook_encryption_key "*) say "the secrets of webhooks cannot be read any more: they have to be entered again" ;;
esac
