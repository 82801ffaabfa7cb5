#!/bin/sh
# Looks after the users in secrets/htpasswd, while the server runs on.
#   users.sh add|password|remove   WHO is the user
#   users.sh list
set -eu
cd "$(dirname "$0")/.."
action=$1
who=${WHO:-}

die() {
  printf 'users: error: %s\n' "$*" >&2
  exit 1
}

stackops() { docker compose --progress quiet run --rm -T users "$@"; }

# An editor may have put a new file in the place of the list. The server then keeps the old one.
seen() {
  for server in $(docker compose ps --status running --quiet mlflow); do
    docker exec "$server" cat /run/secrets/htpasswd </dev/null | cmp -s - secrets/htpasswd ||
      die "the list is changed, but a server still reads one that was replaced by hand: run 'make restart'"
  done
}

if [ "$action" = list ]; then
  stackops user list </dev/null
  exit
fi
[ -n "$who" ] || die "say who, for example NAME=ann"
if [ "$action" = remove ]; then
  stackops user remove -- "$who" </dev/null
  seen
  exit
fi

# The password is one line: typed twice and not shown at a terminal, else from standard input. An empty one means: make one.
# It goes on by a pipe; no command line and no log has it.
if [ -t 0 ]; then
  trap 'stty echo' EXIT
  trap 'exit 130' INT TERM
  stty -echo
  printf 'Password of %s (nothing: a random one): ' "$who" >&2
  IFS= read -r password
  printf '\n' >&2
  if [ -n "$password" ]; then
    printf 'Again: ' >&2
    IFS= read -r again
    printf '\n' >&2
    [ "$password" = "$again" ] || die "the two differ: nothing was changed"
  fi
  stty echo
  trap - EXIT INT TERM
else
  IFS= read -r password || :
fi
made=
if [ -z "$password" ]; then
  made=yes
  password=$(LC_ALL=C tr -dc 'A-Za-z0-9' </dev/urandom | head -c 24)
fi
printf '%s\n' "$password" | stackops user "$action" -- "$who"
[ -z "$made" ] || printf 'The password, shown this once: %s\n' "$password"
seen
