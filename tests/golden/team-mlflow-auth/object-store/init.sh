#!/bin/sh
# Creates the private bucket and one key per reader that reaches this bucket and nothing else. Runs at every start and changes
# nothing when all is there. Keys go through the environment and standard input, never through a command line.
set -eu

read_key() { sed -n "s/^$2 *= *//p" "/run/secrets/$1"; }

add_user() {
  printf '%s\n%s\n' "$(read_key "$1" aws_access_key_id)" "$(read_key "$1" aws_secret_access_key)" | mc --quiet admin user add store >/dev/null
  if ! attached=$(mc --quiet admin policy attach store mlflow --user "$(read_key "$1" aws_access_key_id)" 2>&1); then
    case $attached in
      *already*) ;;
      *) echo "object-store-init: error: $attached" >&2 && exit 1 ;;
    esac
  fi
}

MC_HOST_store="http://$(cat /run/secrets/object_store_root_user):$(cat /run/secrets/object_store_root_password)@object-store:9000"
export MC_HOST_store

mc --quiet mb --ignore-existing "store/$BUCKET"
sed "s/BUCKET/$BUCKET/g" /init/policy.json >/tmp/policy.json
mc --quiet admin policy create store mlflow /tmp/policy.json
add_user s3_credentials
add_user client_s3_credentials
echo "object-store-init: the bucket $BUCKET is private and ready"
