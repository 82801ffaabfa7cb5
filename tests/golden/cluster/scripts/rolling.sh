# shellcheck shell=sh
# For restart.sh and upgrade.sh, which read this file and have `compose` and `say`: servers give way to new ones, one after the
# other, and there is always one that answers.

# wanted_servers: how many there should be; a word, if .env does not say it in a number above 0.
wanted_servers() {
  number=$(sed -n 's/^MLFLOW_REPLICAS=//p' .env | tail -n 1)
  case ${number:=1} in 0* | *[!0-9]*) number=unknown ;; esac
  echo "$number"
}

# sweep: servers that do not run are of no use to anybody, and go.
sweep() {
  alive=$(compose ps --status running --quiet mlflow)
  dead=$(compose ps --all --quiet mlflow | grep -vxF -e "$alive") || return 0
  # shellcheck disable=SC2086 # one word a server
  docker rm --force $dead >/dev/null
}

# roll NUMBER SERVERS…: there will be NUMBER new servers, and these go. If a new one is not ready, it goes, and those that are left
# of the others stay.
roll() {
  number=$1 fresh=0
  shift
  if [ "$number" = unknown ]; then
    say "MLFLOW_REPLICAS in .env is no number of servers, 1 or more"
    return 1
  fi
  while [ "$fresh" -lt "$number" ]; do
    before=$(compose ps --all --quiet mlflow)
    compose up --detach --no-deps --no-recreate --no-build --scale mlflow=$(($(printf '%s\n' "$before" | grep -c .) + 1)) mlflow || return 1
    fresh=$((fresh + 1))
    new=$(compose ps --all --quiet mlflow | grep -vxF -e "$before") || return 1
    if ! docker exec "$new" stackops ready --wait 120; then
      say "its last words: $(docker logs --tail 1 "$new" 2>&1)"
      docker rm --force "$new" >/dev/null
      return 1
    fi
    [ $# -gt 0 ] || continue
    # nginx looks the names up every five seconds, and leaves out for ten who took no connection.
    sleep 12
    say "server $fresh of $number is ready; an old one ends what it is at"
    docker stop "$1" >/dev/null && docker rm "$1" >/dev/null || return 1
    shift
  done
  for server in "$@"; do
    docker stop "$server" >/dev/null && docker rm "$server" >/dev/null || return 1
  done
}
