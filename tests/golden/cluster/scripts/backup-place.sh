# shellcheck shell=sh
# For backup.sh, restore.sh and restore-drill.sh, which read this file and have `die`: where backups are. Options of the
# containers may be in `extra`.

setting() { sed -n "s/^$1=//p" .env 2>/dev/null | tail -n 1; }

# usual: where backups are, unless somebody says otherwise.
usual() {
  elsewhere=$(setting BACKUP_TO)
  folder=$(setting BACKUP_FOLDER)
  echo "${elsewhere:-${folder:-./backups}}"
}

compose() { docker compose --progress quiet "$@"; }

# place PLACE: puts into `mount` and `key` what a container needs to reach it, and into `inside` its name in there.
place() {
  where=$1 mount='' key='' inside=$1 file=''
  case $where in
    s3://*) file=s3_credentials ;;
    wasbs://*) file=azure_connection_string ;;
    gs://*) file=gcs_credentials.json ;;
    *://*) die "$where is no place for backups: name a folder, s3://BUCKET/PREFIX or wasbs://CONTAINER@ACCOUNT.blob.core.windows.net/PREFIX" ;;
    *)
      [ -d "$where" ] || die "there is no folder $where"
      mount=$(cd "$where" && pwd):/backups inside=/backups
      case $mount in *:*:*) die "$where has a colon in its name, which Docker cannot mount: choose another folder" ;; esac
      ;;
  esac
  if [ -n "$file" ]; then
    for one in "secrets/other/$file" "secrets/$file"; do
      if [ -s "$one" ]; then
        key=$PWD/$one:/run/other/$file:ro
        break
      fi
    done
  fi
}

# stackops WORDS…: a command of stackops with that place, in the image that has all stores' and the database's clients.
stackops() {
  word=$1
  shift
  identity=${AGE_IDENTITY:+$(cd "$(dirname "$AGE_IDENTITY")" && pwd)/$(basename "$AGE_IDENTITY"):/run/other/age_identity:ro}
  alone=--no-deps
  [ -n "$(compose ps --status running --quiet mlflow)" ] || [ -n "${NO_DEPS:-}" ] || alone=
  # shellcheck disable=SC2086 # nothing is one word less
  compose run --rm -T $alone ${mount:+--volume "$mount"} ${key:+--volume "$key"} ${identity:+--volume "$identity"} \
    ${extra:-} --env OTHER_ENDPOINT="${ENDPOINT:-$(setting BACKUP_ENDPOINT)}" --env OTHER_REGION="${REGION:-$(setting BACKUP_REGION)}" \
    backup "$word" --place "$inside" --called "$where" "$@" </dev/null
}

build() {
  compose build --quiet mlflow
  compose build --quiet artifacts-move
}
