#!/bin/sh
# Succeeds, and says what comes next, where the server was made from other files than those that are here, as after 'make update':
# it may not know yet what the scripts of today ask it for.
set -eu
cd "$(dirname "$0")/.."

# What the server can be asked for is in its own part of the files; its image keeps them where it was made from them.
# shellcheck disable=SC2016 # $1 is the folder there
look='cd "$1" && find stackops -name "*.py" | LC_ALL=C sort | xargs cksum'
next="run 'make upgrade' first"
if [ -n "$(docker compose ps --status running --quiet mlflow)" ]; then
  there=$(docker compose exec -T mlflow sh -c "$look" sh / </dev/null 2>/dev/null) || exit 1
else
  there=$(docker compose --progress quiet run --rm -T --no-deps --entrypoint sh mlflow -c "$look" sh / </dev/null) || exit 1
  next="run 'make up' first"
fi
[ "$there" != "$(sh -c "$look" sh .)" ] || exit 1
echo "the server was made from other files than those that are here: $next"
