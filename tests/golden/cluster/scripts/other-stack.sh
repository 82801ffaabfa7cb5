# shellcheck shell=sh
# For migrate.sh and artifacts-move.sh, which read this file and have `die`: FROM= may name the folder of another stack.
# It is asked for its settings, and nothing in it is changed.

their_folder='' their_settings='' joined='' started=''
network=cluster_edge

is_stack() { [ -f "$1/compose.yaml" ] && [ -f "$1/.copier-answers.yml" ]; }

# meet FOLDER: makes the stack in there the other one.
meet() {
  their_folder=$(cd "$1" && pwd)
  [ "$their_folder" != "$PWD" ] || die "$1 is this very stack: name another"
  their_settings=$(theirs config) || die "the stack in $1 has no settings that Compose can read, see above"
}

# theirs WORDS…: docker compose in the other stack's folder.
theirs() { (cd "$their_folder" && docker compose --progress quiet "$@"); }

# their NAME: what the other stack sets its server's variable NAME to. `name` is the stack's own.
their() { printf '%s\n' "$their_settings" | sed -n "s/^ *$1: //p" | head -n 1 | tr -d '"'; }

# their_data: the volume in which the other stack keeps its data, or its folder, for a server without Docker.
their_data() {
  volume=$(their name)_mlflow-data
  docker volume inspect "$volume" >/dev/null 2>&1 || volume=
  if [ -n "$volume" ] && [ -d "$their_folder/data" ]; then
    die "$their_folder has data in the volume $volume and in its folder data: remove what is not used any more"
  fi
  [ -z "$volume" ] || printf '%s\n' "$volume"
  [ ! -d "$their_folder/data" ] || printf '%s\n' "$their_folder/data"
}

# join SERVICE NAME: until `leave`, this stack's containers reach that service of the other stack under this name. What does
# not run is started, alone.
join() {
  docker network inspect "$network" >/dev/null 2>&1 || docker compose --progress quiet create mlflow
  if [ -z "$(theirs ps --status running --quiet "$1")" ]; then
    started=$1
    theirs up --detach --wait "$1"
  fi
  joined=$(theirs ps --quiet "$1")
  docker network disconnect "$network" "$joined" >/dev/null 2>&1 || true # of a run that was killed
  docker network connect --alias "$2" "$network" "$joined"
}

leave() {
  [ -z "$joined" ] || docker network disconnect "$network" "$joined"
  [ -z "$started" ] || theirs stop "$started"
  joined='' started=''
}
