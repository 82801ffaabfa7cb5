#!/bin/sh
# Shows what matters in the logs: every request in one line, and what the services call an error or a warning.
#
#   make logs                        follows; begins with the last 1000 lines of every service
#   make logs SERVICE=mlflow         all that one service says
#   make logs FOLLOW=0 SINCE=10m     from then on (also 2026-11-27T10:00:00), and ends
#   make logs RAW=1                  as the services wrote it, for machines; of one SERVICE without its name before each line
set -eu
cd "$(dirname "$0")/.."

die() {
  printf 'logs: error: %s\n' "$*" >&2
  exit 1
}

# flag NAME VALUE DEFAULT: succeeds if the value, or else the default, says yes.
flag() {
  case ${2:-$3} in
    1 | yes) return 0 ;;
    0 | no) return 1 ;;
    *) die "$1 is '$2': there are 1 and 0" ;;
  esac
}

[ -f .env ] || die "there is no .env: run 'make up' first"
raw=no
if flag RAW "${RAW:-}" 0; then raw=yes; fi
set -- --no-color
if flag FOLLOW "${FOLLOW:-}" 1; then set -- "$@" --follow; fi
case ${SINCE:-} in
  '') set -- "$@" --tail 1000 ;;
  *[!0-9A-Za-z.:+-]*) die "SINCE is '$SINCE': say 10m, 2h or a time such as 2026-11-27T10:00:00" ;;
  *) set -- "$@" --since "$SINCE" ;;
esac
if [ -n "${SERVICE:-}" ]; then
  docker compose config --services | grep -qxF -e "$SERVICE" || die "there is no service '$SERVICE': see 'docker compose config --services'"
  [ "$raw" = no ] || set -- "$@" --no-log-prefix
  set -- "$@" "$SERVICE"
fi
containers=$(docker compose ps --all --quiet)
[ -n "$containers" ] || die "there are no containers: run 'make up' first"
[ "$raw" = no ] || exec docker compose logs "$@"

# mawk would wait for more input than there is.
case $(awk -W version 2>&1 </dev/null) in mawk*) interactive='-W interactive' ;; *) interactive= ;; esac

# A key of JSON has a bare quote before it, which no text inside JSON has.
# shellcheck disable=SC2086 # two words or none
docker compose logs "$@" 2>&1 | awk $interactive -v everything="${SERVICE:-}" '
  function value(key, rest) {
    if (!match(line, "[{,]\"" key "\":")) return ""
    rest = substr(line, RSTART + RLENGTH)
    if (match(rest, /^"([^"\\]|\\.)*"/)) return substr(rest, 2, RLENGTH - 2)
    if (match(rest, /^[-0-9.e]+/)) return substr(rest, 1, RLENGTH)
    return ""
  }
  function size(bytes) {
    bytes += 0
    if (bytes < 1024) return bytes " B"
    if (bytes < 1048576) return sprintf("%.1f KiB", bytes / 1024)
    return sprintf("%.1f MiB", bytes / 1048576)
  }
  function request(time, user, path, came, went, took, address) {
    time = substr(time, 6, 14)
    sub(/T/, " ", time)
    printf "%s %-12s %s %7.3f s %-6s %s%s%s  %s in, %s out, %s\n", time, service, value("status"), took,
      value("method"), host, path, user == "" ? "" : "  " user, size(came), size(went), address
  }
  {
    line = $0
    bar = index(line, "| ")
    service = bar ? substr(line, 1, bar - 1) : ""
    sub(/ +$/, "", service)
    sub(/-[0-9]+$/, "", service)
    if (bar) line = substr(line, bar + 2)
    gsub(/\033\[[0-9;]*m/, "", line)
    gsub(/[\001-\010\013-\037\177]/, "?", line)
  }
  line ~ /^\{"time":.*"address":"[^"]*"\}$/ {
    request(value("time"), value("user"), value("path"), value("bytes_in"), value("bytes_out"), value("seconds"), value("address"))
    before[service] = 0
    fflush()
    next
  }
  # Besides the words: what glog marks (and not what it calls information), slow statements, what Docker says. What is indented,
  # explains an error of the database, or comes at the end of a traceback, belongs to the line before.
  {
    matters = everything != "" || line ~ /(ERROR|Error|error|FATAL|fatal|PANIC|panic|CRITICAL|WARN|warn|[Ee]xception|[Tt]raceback|refused|[Dd]enied)/
    if (line ~ /^[EWF][0-9][0-9][0-9][0-9] / || line ~ /duration: [0-9.]+ ms/) matters = 1
    if (everything == "" && line ~ /^I[0-9][0-9][0-9][0-9] /) matters = 0
    if (before[service] && (line ~ /^[ \t]|(DETAIL|HINT|STATEMENT|CONTEXT): / || before[service] == 2)) matters = 1
    if (!bar) matters = 1
    if (line ~ /^Traceback/) before[service] = 2
    else if (before[service] != 2 || line !~ /^[ \t]/) before[service] = matters ? 1 : 0
    if (matters) printf "%-14s %-12s %s\n", "", service, line
    fflush()
  }
'
