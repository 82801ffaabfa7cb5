#!/bin/sh
# Builds and starts the stack and waits until it is ready; says in one sentence what is wrong if it is not.
set -eu
cd "$(dirname "$0")/.."

die() {
  printf 'up: error: %s\n' "$*" >&2
  exit 1
}

# Nothing is touched while the secrets are half changed, and what rests meanwhile is not started.
at_work() { holder=$(scripts/rotating.sh) && echo "'make rotate-secrets' (process $holder) is changing the secrets: wait until it has ended"; }
! busy=$(at_work) || die "$busy"

command -v docker >/dev/null || die "Docker is not installed: see https://docs.docker.com/engine/install/"
version=$(docker compose version --short 2>/dev/null) ||
  die "this Docker has no Compose v2: install its Compose plugin, version 2.24 or later (docker-compose v1 is too old)"
version=${version#v}
major=${version%%.*} minor=${version#*.}
minor=${minor%%.*}
if [ "$major" -lt 2 ] || { [ "$major" -eq 2 ] && [ "$minor" -lt 24 ]; }; then
  die "Docker Compose $version is too old: version 2.24 or later is needed"
fi
docker info >/dev/null 2>&1 || die "no Docker engine answers: start it, or see that $(id -un) may use it"
[ -f .env ] || die "there is no .env: run 'make init'"
[ -n "$(sed -n 's/^DB_HOST=//p' .env)" ] || die "DB_HOST in .env is empty: put in the address of your PostgreSQL server"
[ -s secrets/db_password ] || die "secrets/db_password is empty: put in the password of the database user"
setting() { sed -n "s/^$1=//p" .env | tail -n 1; }
servers=$(setting MLFLOW_REPLICAS)
case ${servers:-1} in
  0* | *[!0-9]*) die "MLFLOW_REPLICAS in .env is '$servers': it is the number of servers, 1 or more" ;;
  1) ;;
  *)
    case $(setting MLFLOW_SERVER_ENABLE_JOB_EXECUTION) in
      true | 1) die "MLFLOW_REPLICAS in .env is $servers, and server-side jobs run in one server: each new one would start the unfinished jobs of the others again. Set MLFLOW_REPLICAS=1 or MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false" ;;
    esac
    ;;
esac

# Nothing here encrypts, so other machines come in through something that does, or over a network that is trusted.
case "$(setting HTTP_BIND)/$(setting PUBLIC_URL)/$(setting ALLOW_HTTP)" in
  /* | 127.* | localhost/* | */https://* | */yes) ;;
  *) die "HTTP_BIND in .env lets other machines in, and nothing encrypts: passwords would cross the network readable. Set PUBLIC_URL to the https address of what is in front, or ALLOW_HTTP=yes if the network is safe, or choose a certificate: scripts/update.sh --data tls=self-signed" ;;
esac
docker compose config --quiet || die "compose.yaml, compose.override.yaml or .env is not valid, see above"
! wrong=$(scripts/upgrade.sh in-the-way) || die "$wrong"

docker compose build
docker compose --progress quiet run --rm -T users htpasswd || die "the list of users is not ready, see above"

# The last line of standard input, without what stackops puts in front.
last_words() { grep . | tail -n 1 | sed 's/^stackops: error: //; s/^not ready: //'; }

# Of a part that tries again and again, the last line may be of the try that has just begun.
complaint() {
  awk 'tolower($0) ~ /error|fatal|panic|fail|denied|cannot|emerg/ { bad = $0 } /./ { last = $0 } END { print bad ? bad : last }'
}

# Of a job that failed, its last line is the reason; of a container that could not start, the engine's word.
# In the order of their states: whoever exited or restarts comes before those that run and are not ready because of it, and of
# two that cannot start the one that the other needs.
explain() {
  failed=$(docker compose ps --all --format '{{.Service}} {{.State}} {{.ExitCode}}' | grep -v ' exited 0$' | sed -nE 's/ (exited|restarting) .*//p')
  docker compose ps --all --format '{{.Name}} {{.Service}} {{.State}} {{.ExitCode}} {{.Health}}' |
    while read -r name service state code health; do
      # Between two tries it looks as if it had just been started.
      [ "$health" != starting ] || ! [ "$(docker inspect --format '{{.RestartCount}}' "$name")" -gt 0 ] 2>/dev/null || state=restarting
      echo "$name $service $state $code $health"
    done |
    sort -k 3,3 |
    while read -r name service state code health; do
      error=$(docker inspect --format '{{.State.Error}}' "$name" 2>/dev/null)
      case $error in
        *"already allocated"* | *"already in use"*)
          die "a port that $service needs is in use: choose another in .env (HTTP_PORT)"
          ;;
        ?*) die "$service did not start: $error" ;;
      esac
      case "$state $code $health" in
        "exited 0 "*) ;;
        exited* | restarting*)
          for needed in $(docker inspect --format '{{index .Config.Labels "com.docker.compose.depends_on"}}' "$name" | tr , ' '); do
            printf '%s\n' "$failed" | grep -qx "${needed%%:*}" && continue 2
          done
          said=$(docker logs --tail 5 "$name" 2>&1 | complaint)
          case $said in
            "") die "$service does not start: 'make logs SERVICE=$service'" ;;
            *"stackops: error: "*) die "${said#*stackops: error: }" ;;
            *) die "$service does not start, 'make logs SERVICE=$service' shows all of it: $said" ;;
          esac
          ;;
        *unhealthy)
          die "$service is not ready: $(docker inspect --format '{{range .State.Health.Log}}{{println .Output}}{{end}}' "$name" | last_words)"
          ;;
      esac
    done
}

# A part that fails again and again pauses longer after each time. Its cause may be gone: it starts afresh.
due=$(docker compose ps --status restarting --services)

# nginx reads its files when it starts, and Compose does not see that they have changed since.
proxy=nginx
if id=$(docker compose ps --quiet "$proxy") && [ -n "$id" ]; then
  started=$(mktemp)
  TZ=UTC0 touch -t "$(docker inspect --format '{{.State.StartedAt}}' "$id" | sed 's/[-T:]//g; s/^\(.\{12\}\)\(..\).*/\1.\2/')" "$started"
  changed=$(find "$proxy" -newer "$started")
  rm -f "$started"
  [ -z "$changed" ] || due="$due $proxy"
fi
# shellcheck disable=SC2086 # one word a service
[ -z "$due" ] || docker compose stop $due

# A change of secrets that was interrupted, or has begun since, leaves files of both kinds.
half=$(find secrets -name '.*.next' -o -name '.*.old')
remedy=$(at_work) || remedy="a rotation was interrupted: run 'make rotate-secrets' to finish it"
if ! docker compose up --detach --wait; then
  [ -z "$half" ] || die "$remedy"
  explain
  die "the stack did not become ready: see 'make logs'"
fi
# What 'make upgrade' goes back to if it has to.
(umask 077 && docker compose config >.running.yaml.part) && mv .running.yaml.part .running.yaml
echo "cluster is ready: $(scripts/url.sh), user admin, password in secrets/admin_password"
[ -z "$half" ] || printf 'up: %s\n' "$remedy" >&2
