#!/bin/sh
# Brings the data to the major version of PostgreSQL that the stack wants now, by a copy; the old data stay as they are.
#   upgrade-postgres.sh           BACK=1 goes back to them; DROP=17 deletes those of that version
#   upgrade-postgres.sh check     fails and says why, if the data are of another version than the stack wants
set -eu
cd "$(dirname "$0")/.."
action=${1:-upgrade}

say() { printf 'upgrade-postgres: %s\n' "$*"; }

die() {
  printf 'upgrade-postgres: error: %s\n' "$*" >&2
  exit 1
}

compose() { docker compose --progress quiet "$@"; }

volume=team-mlflow-auth_postgres-data helper=team-mlflow-auth-postgres-old copier=team-mlflow-auth-postgres-copy kept=backups/upgrade-postgres

# shellcheck source=/dev/null
. scripts/lock.sh

# What an image or a container says of itself: PG_MAJOR, PGDATA.
says() { docker inspect --format '{{range .Config.Env}}{{println .}}{{end}}' "$1" 2>/dev/null | sed -n "s/^$2=//p"; }

# Runs a shell command where the volume is; /var/lib/postgresql/N/docker holds the data of version N.
in_volume() {
  docker run --rm --network none --user 0 --volume "$volume:/var/lib/postgresql" --workdir /var/lib/postgresql \
    --entrypoint sh "$image" -euc "$1"
}

image=$(docker compose config --images postgres 2>/dev/null | head -n 1)
if [ "$action" = check ]; then
  docker volume inspect "$volume" >/dev/null 2>&1 || exit 0
  docker image inspect "$image" >/dev/null 2>&1 || docker pull --quiet "$image" >/dev/null || exit 0
fi

wanted=$(says "$image" PG_MAJOR)
pgdata=$(docker compose config postgres 2>/dev/null | sed -n 's/^ *PGDATA: //p' | head -n 1 | tr -d '"')
pgdata=${pgdata:-$(says "$image" PGDATA)}
case $wanted in '' | *[!0-9]*) # an image that does not say what it is
  [ "$action" != check ] || exit 0
  die "the image $image is not here, or does not say which PostgreSQL it is: 'docker pull $image'"
  ;;
esac
id=$(docker compose ps --status running --quiet postgres 2>/dev/null | head -n 1)
# Nothing changes for a server that runs already, with this image and this folder.
if [ "$action" = check ] && [ -n "$id" ] && [ "$(says "$id" PGDATA)" = "$pgdata" ] &&
  [ "$(docker inspect --format '{{.Image}}' "$id")" = "$(docker image inspect --format '{{.Id}}' "$image")" ]; then
  exit 0
fi
there=$(docker volume inspect "$volume" >/dev/null 2>&1 && in_volume "cat $pgdata/PG_VERSION 2>/dev/null || :") || there=
others=$(docker volume inspect "$volume" >/dev/null 2>&1 && in_volume 'cat [0-9]*/docker/PG_VERSION 2>/dev/null || :' | sort -n) || others=
# The newest data that are older than what is wanted.
old=$(for n in $others; do [ "$n" -ge "$wanted" ] || echo "$n"; done | tail -n 1)

if [ "$action" = check ]; then
  if [ "$there" = "$wanted" ] || [ -z "$there$others" ]; then exit 0; fi
  if [ -n "$there" ] && [ "$there" -lt "$wanted" ]; then
    echo "PostgreSQL's data are of version $there, and PGDATA holds the server to them while $image is version $wanted: take PGDATA out of compose.override.yaml, then run 'make upgrade-postgres'"
  elif [ -n "$old" ]; then
    echo "PostgreSQL's data are of version $old and $image is version $wanted: run 'make upgrade-postgres'"
  elif echo "$others" | grep -qx "$wanted"; then
    echo "PostgreSQL's data are in $wanted/docker of the volume and $image looks for them in $pgdata: set PGDATA=/var/lib/postgresql/$wanted/docker for it in compose.override.yaml"
  else
    echo "PostgreSQL's data are of version ${there:-$(echo "$others" | tail -n 1)}, which is newer than $image: set POSTGRES_IMAGE in .env to that version"
  fi
  exit 1
fi

[ -f .env ] || die "there is no .env: run 'make init'"
! wrong=$(scripts/upgrade.sh in-the-way) || die "$wrong"
trap unlock EXIT
lock upgrade-postgres
# A run that was killed may have left its own at work.
docker rm --force $helper $copier >/dev/null 2>&1 || true
trap 'exit 130' INT TERM HUP
umask 077
mkdir -p $kept

# What uses the database, and runs now.
clients=$(cat $kept/clients 2>/dev/null) || clients=
running() { docker compose ps --status running --quiet mlflow; }

# again: the clients that ran run again, as they were.
again() {
  # shellcheck disable=SC2086 # one word a container
  [ -z "$clients" ] || docker start $clients >/dev/null || return 1
  for client in $clients; do
    docker exec "$client" stackops ready --wait 120 || return 1
  done
  rm -f $kept/clients
}

# old_server: the service postgres is what it was.
old_server() {
  set -- --file compose.yaml
  for file in compose.override.yaml compose.override.yml; do [ ! -f $file ] || set -- "$@" --file $file; done
  compose "$@" --file $kept/old.yaml up --detach --wait --no-deps postgres
}

# forget: what names the server that goes is not gone back to.
forget() { rm -f .running.yaml backups/upgrade/step; }

if [ -n "${DROP:-}" ]; then
  [ "$there" = "$wanted" ] && [ "$DROP" != "$wanted" ] || die "the data of version $DROP are in use, or the stack does not use others yet"
  echo "$others" | grep -qx "$DROP" || die "there are no data of version $DROP"
  in_volume "rm -rf $DROP"
  [ "$DROP" != "$(cat $kept/major 2>/dev/null)" ] || rm -f $kept/old.yaml $kept/major
  say "the data of version $DROP are deleted"
  exit
fi

if [ -n "${BACK:-}" ]; then
  major=$(cat $kept/major 2>/dev/null) || die "there is no upgrade of PostgreSQL to go back from"
  case $there in "$wanted" | '') ;; *) die "the server has the data of version $there already" ;; esac
  echo "$others" | grep -qx "$major" || die "there are no data of version $major any more"
  say "going back to version $major; what was logged since the upgrade stays in $wanted/back-… of the volume, and in no server"
  [ -n "$clients" ] || clients=$(running)
  echo "$clients" >$kept/clients
  compose stop mlflow postgres
  forget
  [ -z "$there" ] || in_volume "mv $pgdata $wanted/back-$(date +%Y%m%d-%H%M%S)"
  old_server || die "PostgreSQL $major does not start: see 'make logs SERVICE=postgres'"
  again || die "the server is not ready: see 'make logs'"
  say "done: PostgreSQL $major. To stay with it, put what $kept/old.yaml says into compose.override.yaml: 'make up' wants version $wanted until then"
  exit
fi

if [ "$there" = "$wanted" ]; then
  rm -f $kept/clients
  say "nothing to do: the data are of version $wanted already; 'make up' starts what does not run"
  exit
fi
[ -n "$old" ] || die "there are no older data in the volume $volume: 'make up' makes new ones"
[ -z "$there" ] || die "PGDATA in compose.override.yaml holds the server to the data of version $there: take it out first"

# The image of the old version: what ran with these data, or what is called like the new one.
former=${OLD_IMAGE:-}
id=$(docker compose ps --all --quiet postgres 2>/dev/null | head -n 1)
[ -n "$former" ] || [ -z "$id" ] || former=$(docker inspect --format '{{.Config.Image}}' "$id")
[ "$(says "$former" PG_MAJOR)" = "$old" ] || [ -n "${OLD_IMAGE:-}" ] || former=$(echo "$image" | sed "s/@.*//; s/:[0-9.]*/:$old/")
docker image inspect "$former" >/dev/null 2>&1 || docker pull --quiet "$former" >/dev/null ||
  die "there is no image $former, which would read the old data: name one of version $old, OLD_IMAGE=…"
[ "$(says "$former" PG_MAJOR)" = "$old" ] || die "OLD_IMAGE $former is not PostgreSQL $old"

say "the data are of version $old ($former), version $wanted ($image) is to come"
# shellcheck disable=SC2046 # two words
set -- $(in_volume "du -sk $old/docker; df -Pk . | tail -n 1" | awk 'NR == 1 { print $1 } NR == 2 { print $4 }')
[ "$2" -gt $(($1 + $1 / 4 + 65536)) ] || die "the copy of $(($1 / 1024)) MiB does not fit on the disk, which has $(($2 / 1024)) MiB left: make room first"
say "nobody can log until it is done. The old data stay in $old/docker of the volume, and BACK=1 goes back to them"

cat >$kept/old.yaml <<YAML
services:
  postgres:
    image: $former
    environment: {PGDATA: /var/lib/postgresql/$old/docker}
YAML
echo "$old" >$kept/major

# Whatever happens from here on, the old server and its clients run again unless the new one has taken over.
ran=$(docker compose ps --status running --quiet postgres)
[ -n "$clients" ] || clients=$(running)
echo "$clients" >$kept/clients
switched=
finish() {
  code=$?
  trap '' INT TERM HUP
  set +e
  docker stop --time 60 $helper >/dev/null 2>&1
  docker rm --force $helper $copier >/dev/null 2>&1
  if [ -z "$switched" ]; then
    compose stop mlflow
    in_volume "rm -rf .upgrade $wanted/new $wanted/failed; ! [ -e $wanted/docker ] || mv $wanted/docker $wanted/failed"
    if [ -z "$ran" ] && [ -z "$clients" ]; then
      echo "upgrade-postgres: error: it failed, see above; the old data are untouched, and nothing runs, as before" >&2
    elif old_server && again; then
      echo "upgrade-postgres: error: it failed, see above; PostgreSQL $old runs again with the old data" >&2
    else
      echo "upgrade-postgres: error: it failed, see above; the old data are untouched, and PostgreSQL $old does not start: see 'make logs'" >&2
    fi
    [ $code -ne 0 ] || code=1
  fi
  unlock
  exit $code
}
trap finish EXIT

say "stopping the server and PostgreSQL $old"
compose stop mlflow postgres
in_volume "rm -rf $wanted/new .upgrade; mkdir -p $wanted .upgrade; chown \$(stat -c %u:%g $old/docker) $wanted .upgrade"

# Without a network: both meet at a socket in the volume.
sockets=/var/lib/postgresql/.upgrade
POSTGRES_IMAGE=$former compose run --detach --no-deps --name $helper --env PGDATA="/var/lib/postgresql/$old/docker" postgres \
  postgres -clisten_addresses= -cunix_socket_directories=$sockets -clog_min_error_statement=panic >/dev/null
say "copying, and comparing both"
compose run --rm -T --no-deps --name $copier --env PGDATA="/var/lib/postgresql/$wanted/new" --env OLD="$old" --env SOCKETS=$sockets \
  --volume "$PWD/postgres/upgrade.sh:/upgrade.sh:ro" --entrypoint bash postgres /upgrade.sh </dev/null
docker stop --time 60 $helper >/dev/null
docker rm $helper >/dev/null

say "switching to version $wanted"
forget
in_volume "rm -rf .upgrade; mv $wanted/new $pgdata"
compose up --detach --wait --no-deps postgres
again
switched=yes
say "done: PostgreSQL $wanted. The old data are in $old/docker of the volume $volume: BACK=1 goes back to them, DROP=$old deletes them"
