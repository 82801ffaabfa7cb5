#!/bin/sh
# Looks after MLflow's users, while the server runs on.
#   users.sh add|password|remove   WHO is the user
#   users.sh list
#   users.sh grant                 EXPERIMENT or MODEL, and PERMISSION; without them, shows what WHO has
set -eu
cd "$(dirname "$0")/.."
action=$1
who=${WHO:-}

die() {
  printf 'users: error: %s\n' "$*" >&2
  exit 1
}

stackops() { docker compose exec -T mlflow stackops "$@"; }

[ -n "$(docker compose ps --status running --quiet mlflow)" ] || die "the server does not run: run 'make up'"

if [ "$action" = list ]; then
  stackops user list </dev/null
  exit
fi
if [ "$action" = grant ]; then
  [ -n "$who" ] || die "say who, for example USER=ann"
  stackops grant --experiment="${EXPERIMENT:-}" --model="${MODEL:-}" --permission="${PERMISSION:-}" -- "$who" </dev/null
  exit
fi
[ -n "$who" ] || die "say who, for example NAME=ann"
if [ "$action" = remove ]; then
  stackops user remove -- "$who" </dev/null
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
