#!/bin/sh
# Brings the running stack to the version of its files, and back to what it was if anything fails. README.md explains it.
#   upgrade.sh [check]     check only says what would be done; so does CHECK=1
#   upgrade.sh undo        goes back after an upgrade that succeeded; what was logged since is lost, so it wants REPLACE=1
#   upgrade.sh in-the-way  for up.sh: succeeds and says why, if the stack must not be started now
set -eu
cd "$(dirname "$0")/.."
action=${1:-upgrade}
[ -z "${CHECK:-}" ] || action=check
umask 077

say() { printf 'upgrade: %s\n' "$*"; }

die() {
  printf 'upgrade: error: %s\n' "$*" >&2
  exit 1
}

compose() { docker compose --progress quiet "$@"; }

kept=backups/upgrade backup=backups/upgrade/database next=gcs-mlflow:upgrade-next before=gcs-before-upgrade helper=gcs-upgrade

# How far it is: stopped, saved, migrating, starting, going-back; and how it ended: done, went-back.
reached() {
  echo "$1" >$kept/step.part
  mv $kept/step.part $kept/step
  step=$1
}
step=$(cat $kept/step 2>/dev/null) || step=

# The version that the files ask for, as one word.
wanted() { find compose.yaml mlflow stackops -type f ! -name '*.pyc' | sort | xargs cksum | cksum; }

# shellcheck source=/dev/null
. scripts/lock.sh

if [ "$action" = in-the-way ]; then
  [ -z "${STACK_LOCK:-}" ] || exit 1 # a command that holds the lock starts the stack itself
  if busy; then
    # shellcheck disable=SC2154 # lock.sh has it
    case $held in
      *" upgrade"* | *" restore" | *" migrate")
        echo "'make ${held#* }' (process ${held%% *}) is at work: wait until it has ended"
        exit
        ;;
    esac
  fi
  if [ -e .restore.unfinished ]; then
    unfinished
    exit
  fi
  case $step in
    stopped | saved | migrating | starting | going-back)
      echo "an upgrade was interrupted: run 'make upgrade' to finish it, or 'make upgrade-undo' to go back"
      ;;
    went-back)
      [ "$(cat $kept/refused)" = "$(wanted)" ] || exit 1
      echo "the last upgrade went back, and its version is still what the files ask for: 'make upgrade' tries again; to stay with the one from before, take its files back ('git checkout')"
      ;;
    *) exit 1 ;;
  esac
  exit
fi

command -v docker >/dev/null || die "Docker is not installed: see https://docs.docker.com/engine/install/"
docker info >/dev/null 2>&1 || die "no Docker engine answers: start it, or see that $(id -un) may use it"
[ -f .env ] || die "there is no .env: run 'make init'"
docker compose config --quiet || die "compose.yaml, compose.override.yaml or .env is not valid, see above"

[ -z "$(find secrets -name '.*.next' -o -name '.*.old')" ] ||
  die "the secrets are half changed: wait for 'make rotate-secrets', or run it to finish what was interrupted"
trap unlock EXIT
lock upgrade

# The databases are looked at by the version to come, in the image of 'make backup', which can also copy them.
stackops() {
  MLFLOW_IMAGE=$next compose run --rm -T --no-deps --name $helper --volume "$PWD/$kept:/upgrade" backup upgrade "$@" </dev/null
}
# A run that was killed may have left its own at work.
docker rm --force $helper >/dev/null 2>&1 || true

# The images of before get their names back.
tag_again() {
  while read -r service image name; do
    case $name in *@* | sha256:*) continue ;; esac # such a name cannot mean another image
    docker tag "$image" "$name" || return 1
  done <$kept/images
}

# What ran before runs again, or the services that are named: the images under their names, and the settings of then.
restart() {
  tag_again || return 1
  if [ -s $kept/compose.yaml ]; then
    compose --project-directory "$PWD" --file $kept/compose.yaml up --detach --wait --no-build "$@"
  else
    MLFLOW_IMAGE=$before:mlflow compose up --detach --wait --no-build "$@"
  fi
}

# go_back WHAT: the state from before, or the truth about how far that went.
go_back() {
  case $step in
    stopped | saved)
      say "going back: the databases are untouched, and the version from before starts"
      ;;
    *)
      reached going-back
      say "going back: looking whether the databases are as before"
      compose stop mlflow || true
      restart --no-deps postgres || die "$1, and PostgreSQL of before does not start, see above; nothing runs: run 'make upgrade' again, it goes on from here"
      if [ "$(stackops touched /upgrade/before.json)" != "as before" ]; then
        say "going back: restoring $backup"
        stackops put-back /upgrade/database || die "$1, and $backup could not be restored, see above; nothing runs: run 'make upgrade' again, it goes on from here"
        rows=$(stackops verify /upgrade/before.json) || die "$1, and what was restored from $backup is not what it was, see above; nothing runs"
        say "going back: as before again, $rows"
      fi
      ;;
  esac
  restart || die "$1; the databases are as before, but the version from before does not start, see above and 'make logs'"
  # The next upgrade goes back to what runs now.
  if [ -s $kept/compose.yaml ]; then cp $kept/compose.yaml .running.yaml; else rm -f .running.yaml; fi
  wanted >$kept/refused
  reached went-back
  [ "$action" != undo ] || {
    say "done: the stack runs as before, MLflow $running with the data from before"
    exit 0 # by itself it would mean what it was before the trap
  }
  die "$1; the stack runs as before: MLflow $running with the data from before"
}

running=$(cat $kept/running 2>/dev/null) || running=
begun='' failed="the upgrade was interrupted"
finish() {
  code=$?
  trap '' INT TERM HUP
  set +e
  if [ -n "$begun" ]; then
    (go_back "$failed")
    back=$?
    [ "$action" != undo ] || code=$back
  fi
  unlock
  exit $code
}
trap finish EXIT
trap 'exit 130' INT TERM HUP

# give_up TEXT: what failed; the way back is gone on the way out.
give_up() {
  failed=$1
  [ -n "$begun" ] || die "$1; clients may have logged since the interrupted upgrade, so it does not go back by itself: 'make upgrade-undo' does"
  exit 1
}

if [ "$step" = going-back ]; then
  begun=yes
  give_up "an upgrade failed and was interrupted on its way back"
fi
if [ "$action" = undo ]; then
  case $step in
    stopped | saved | migrating) ;; # nobody could log since
    done | starting)
      differs=$(stackops verify /upgrade/before.json 2>&1) ||
        [ "${REPLACE:-}" = 1 ] || die "going back loses what was logged since the upgrade; REPLACE=1 says that it may (${differs##*: error: })"
      ;;
    *) die "there is no upgrade to go back from" ;;
  esac
  begun=yes
  give_up "the upgrade cannot be undone"
fi
wrong=$(scripts/upgrade-postgres.sh check) || die "$wrong"

# 1. Look. The new image gets a name of its own until it is known to fit.
mkdir -p $kept
[ "$(id -u)" -ne 0 ] || chown "$(sed -n 's/^STACK_UID=//p' .env):$(sed -n 's/^STACK_GID=//p' .env)" backups $kept
say "building the version to come, while the one that runs goes on"
{ MLFLOW_IMAGE=$next compose build --quiet mlflow && MLFLOW_IMAGE=$next compose build --quiet artifacts-move; } ||
  die "the new image cannot be built, see above; nothing has changed"
case $step in
  migrating | starting) say "the upgrade that was interrupted goes on; its backup is $backup" ;;
  *)
    compose ps --all --format '{{.Service}} {{.ID}}' | while read -r service id; do
      docker inspect --format "$service {{.Image}} {{.Config.Image}}" "$id"
    done | sort -u >$kept/images.now
    grep -q '^mlflow ' $kept/images.now ||
      die "no version runs here that could be upgraded, and gone back to: 'make up' starts the stack"
    image=$(sed -n 's/^mlflow \([^ ]*\) .*/\1/p' $kept/images.now)
    running=$(docker run --rm --network none --entrypoint python "$image" -c 'from importlib.metadata import version as v; print(v("mlflow"))') ||
      die "the version that runs cannot be asked what it is, see above"
    [ -n "$(compose ps --status running --quiet postgres)" ] || compose start postgres || die "PostgreSQL does not start, see above"
    stackops look /upgrade --running "$running" || die "it was only looked at, nothing has changed"
    free=$(compose exec -T postgres df -Pk /var/lib/postgresql | awk 'END { print $4 }')
    used=$(compose exec -T postgres psql --username mlflow --tuples-only --no-align --command 'SELECT pg_database_size(current_database()) / 1024' mlflow)
    [ "$free" -gt $((used + 65536)) ] || die "PostgreSQL's disk has $((free / 1024)) MiB left, and going back may need $((used / 1024 + 64)): make room first"
    # A container changes with its image or with its settings.
    replaced=$(compose config --hash '*' | while read -r service hash; do
      for id in $(compose ps --all --quiet "$service" 2>/dev/null); do
        now=$(docker inspect --format '{{index .Config.Labels "com.docker.compose.config-hash"}} {{.Image}}' "$id")
        image=${now#* }
        case $service in mlflow | migrate) image=$(docker image inspect --format '{{.Id}}' $next) ;; esac
        [ "$now" = "$hash $image" ] || {
          printf ' %s' "$service"
          break
        }
      done
    done)
    if [ -z "$replaced" ]; then
      say "nothing to do: what runs is what the files ask for"
      exit
    fi
    say "containers that change:$replaced"
    [ "$action" != check ] || exit 0
    compose build --quiet || die "an image cannot be built, see above; nothing has changed"

    say "nobody can log until it is done. If it fails, all goes back to now, but for what is logged after the new version has started"
    if [ "$step" = "done" ]; then say "the backup of the last upgrade gives way to the new one"; fi
    find $kept -mindepth 1 ! -name images.now -delete
    mv $kept/images.now $kept/images
    echo "$running" >$kept/running
    [ ! -f .running.yaml ] || cp .running.yaml $kept/compose.yaml
    while read -r service image name; do docker tag "$image" "$before:$service"; done <$kept/images
    ;;
esac
[ "$action" != check ] || exit 0

# 2. Stop the server, save.
case $step in
  migrating | starting) compose stop mlflow ;;
  *)
    reached stopped
    begun=yes
    say "stopping the server"
    compose stop mlflow || give_up "the server does not stop"
    say "saving the database: $backup"
    { stackops remember /upgrade/before.json && stackops save /upgrade/database; } || give_up "the database cannot be saved, see above"
    reached saved
    ;;
esac

# 3. Migrate every database, start, check.
begun=yes
[ "$step" != starting ] || begun=
[ "$step" = starting ] || reached migrating
say "migrating"
compose run --rm -T migrate </dev/null || give_up "the migration failed, see above"
reached starting
say "starting"
scripts/up.sh >$kept/up.log 2>&1 || give_up "the new version does not start: $(sed -n 's/^up: error: //p' $kept/up.log | tail -n 1)"
say "checking"
compose run --rm -T check </dev/null || give_up "the new version does not pass 'make check', see above"
begun=
reached "done"
say "done. The backup from before is $backup; 'make upgrade-undo' goes back to it, until the next upgrade"
