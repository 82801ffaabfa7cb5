#!/bin/sh
# Prints the number of the process that changes the secrets right now; fails if there is none.
# The lock is a link to the number of the process that holds it; one that was killed holds nothing.
cd "$(dirname "$0")/.." || exit 1
holder=$(readlink .rotate-secrets.lock) || exit 1
case $(ps -p "$holder" -o args= 2>/dev/null) in
  *rotate-secrets*) echo "$holder" ;;
  *) exit 1 ;;
esac
