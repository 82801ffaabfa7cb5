#!/bin/sh
# What fits a machine, as lines for .env, each with its reason: 'make init' writes them into a new .env, 'make size' compares
# them with yours.
#
#   scripts/sizing.sh CPUS MEMORY [JOBS [SERVERS]]   whole CPUs; memory in MiB; JOBS=1 where server-side jobs run
#
# Measured with MLflow 3.17 and 16 clients at once: the server needs 320 MiB, 180 MiB more for each worker, and 1.3 GiB for jobs;
# more workers than CPUs bring nothing. All limits together stay below the machine's memory.
set -eu

die() {
  printf 'sizing: error: %s\n' "$*" >&2
  exit 1
}

case "${1:-}/${2:-}/${3:-0}/${4:-1}" in *[!0-9/]* | /* | */ | *//*) die "say CPUs and MiB in whole numbers" ;; esac
cpus=$1 memory=$2 jobs=${3:-0} servers=${4:-1}
[ "$servers" -ge 1 ] || die "say how many servers: 1 or more"

# clamp VALUE LEAST MOST
clamp() {
  if [ "$1" -lt "$2" ]; then
    echo "$2"
  elif [ "$1" -gt "$3" ]; then
    echo "$3"
  else
    echo "$1"
  fi
}

# An eighth, and half a GiB at least, is the machine's own; nginx has a fixed share.
fixed=256
budget=$((memory - $(clamp $((memory / 8)) 512 8192) - fixed))
base=$((320 + jobs * 1300))
left=$((budget))

# Half of the server's memory is for what passes through: uploads, big answers, the libraries' own caches.
# Of several, each has the same.
least=$((servers * (base + 250)))
if [ "$left" -lt "$least" ]; then
  needed=$((least + fixed + 512))
  [ "$memory" -ge "$needed" ] || die "this stack needs $needed MiB of memory, and the machine has $memory"
  left=$least
fi
left=$((left / servers)) least=$((least / servers)) cpus=$(((cpus + servers - 1) / servers))
workers=$(clamp $(((left / 2 - base) / 180)) 1 4)
[ "$workers" -le "$cpus" ] || workers=$(clamp "$cpus" 1 4)
server=$((2 * (base + 180 * workers)))
server=$(clamp "$left" "$least" "$(clamp "$server" 2048 8192)")

echo "# One for each CPU, four at most in each server, as far as the memory goes."
echo "MLFLOW_WORKERS=$workers"
echo "# Twice what the server needs with its workers, 2 GiB where there is room."
echo "MLFLOW_MEMORY=${server}m"
