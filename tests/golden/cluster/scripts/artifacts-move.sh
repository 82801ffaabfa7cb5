#!/bin/sh
# Copies every artifact between this stack's store and another one, and changes the locations in the database.
#
#   make artifacts-move TO=STORE      from this stack's store to that one
#   make artifacts-move FROM=STORE    from that store to this stack's
#
# STORE is s3://BUCKET, wasbs://CONTAINER@ACCOUNT.blob.core.windows.net or gs://BUCKET, each with /PREFIX if you like,
# local (the volume of a stack that keeps its artifacts itself), or a folder of this machine such as ./mlruns; after FROM=
# also the folder of another stack on this machine, such as ../team.
#
#   DRY_RUN=1     only say what would be done
#   KEEP=source   where an object is in both stores and different, copy it again; KEEP=target: leave it
#   DISTRUST=1    read again, on both sides, what earlier runs have copied, and compare
#   JOBS=16       objects at once
#   ENDPOINT=URL, REGION=NAME   of an S3 server that is not Amazon's, and of the bucket
#   KNOWN_AS=URI  the old location in the database, when FROM is a copy of it
#
# The other store's key is read from secrets/other/, or else from secrets/: s3_credentials, azure_connection_string or
# gcs_credentials.json. Nothing is deleted. A run that was interrupted is simply started again.
set -eu
cd "$(dirname "$0")/.."

die() {
  printf 'artifacts-move: error: %s\n' "$*" >&2
  exit 1
}

# shellcheck source=/dev/null
. scripts/other-stack.sh
# shellcheck source=/dev/null
. scripts/lock.sh
finish() {
  leave
  unlock
}
trap finish EXIT
trap 'exit 130' INT TERM

case ${TO:+to}${FROM:+from} in
  to) side=--to other=$TO ;;
  from) side=--from other=$FROM ;;
  *) sed -n '2,/^set/s/^# \{0,1\}//p' "$0" >&2 && die "give either TO or FROM" ;;
esac

[ -n "${DRY_RUN:-}" ] || lock artifacts-move

volume=cluster_mlflow-data
set --
case $other in
  local)
    # Labelled as Compose does it, so that the stack takes it for its own.
    docker volume inspect "$volume" >/dev/null 2>&1 ||
      { [ "$side" = --to ] && docker volume create --label com.docker.compose.project=cluster \
        --label com.docker.compose.volume=mlflow-data "$volume" >/dev/null; } ||
      die "there is no volume $volume: nothing was ever kept locally here"
    set -- --volume "$volume:/other" artifacts-move "$side" /other/artifacts --known-as /data/artifacts
    ;;
  s3://* | wasbs://* | gs://*)
    case $other in
      s3:*) key=s3_credentials ;;
      wasbs:*) key=azure_connection_string ;;
      *) key=gcs_credentials.json ;;
    esac
    set -- artifacts-move "$side" "$other" --known-as "${KNOWN_AS:-$other}"
    for file in "secrets/other/$key" "secrets/$key"; do
      if [ -s "$file" ]; then
        set -- --volume "$PWD/$file:/run/other/$key:ro" "$@"
        break
      fi
    done
    ;;
  *)
    [ -d "$other" ] || die "$other is no store and no folder: 'make artifacts-move' explains what is"
    if ! is_stack "$other"; then
      folder=$(cd "$other" && pwd)
      set -- --volume "$folder:/other" artifacts-move "$side" /other --known-as "${KNOWN_AS:-$folder}"
      [ "$side" = --from ] || set -- "$@" --copy-only
    elif [ "$side" = --to ]; then
      die "$other is a stack: go there and say FROM=$PWD"
    else
      meet "$other"
      uri=$(their ARTIFACT_URI)
      case $uri-$(their MLFLOW_S3_ENDPOINT_URL) in
        /*)
          data=$(their_data)
          [ -n "$data" ] || die "there are no artifacts of $other on this machine: bring the folder instead"
          set -- --volume "$data:/other" artifacts-move --from /other/artifacts --known-as "$uri"
          ;;
        s3://*-http://object-store:*)
          join object-store old-store
          ENDPOINT=$(their MLFLOW_S3_ENDPOINT_URL | sed 's/object-store/old-store/') REGION=$(their AWS_DEFAULT_REGION)
          set -- --volume "$(cd "$other" && pwd)/secrets/s3_credentials:/run/other/s3_credentials:ro" \
            artifacts-move --from "$uri" --known-as "$uri"
          ;;
        *) die "$other keeps its artifacts in $uri: say FROM=$uri, and put its key into secrets/other" ;;
      esac
    fi
    ;;
esac
[ -z "${DRY_RUN:-}" ] || set -- "$@" --dry-run
[ -z "${DISTRUST:-}" ] || set -- "$@" --distrust
[ -z "${KEEP:-}" ] || set -- "$@" --keep "$KEEP"
[ -z "${JOBS:-}" ] || set -- "$@" --jobs "$JOBS"

docker compose build --quiet mlflow
docker compose build --quiet artifacts-move
docker compose run --rm -T --no-deps --env OTHER_ENDPOINT="${ENDPOINT:-}" --env OTHER_REGION="${REGION:-}" "$@"
