#!/bin/sh
# Brings this stack to the cluster that kubectl talks to now; 'kubectl config current-context' says which one that is.
#
#   make k8s-render    prints what would be applied
#   make k8s-secrets   makes the namespace, and the Secrets from the files of secrets/; PRINT=1 prints them instead
#   make k8s-check     renders everything, refuses what is not filled in, and lets the cluster try without doing it
#   make k8s-migrate   runs the schema's job and waits for it
#   make k8s-apply     does that, then brings the servers and waits until they are ready
#   OVERLAY=dev        k8s/overlays/dev in place of k8s/overlays/production
#
# Run a second time, each changes nothing that is right already. Secrets go through files and standard input, never
# through a command line.
set -eu
cd "$(dirname "$0")/.."
command=${1:-}
overlay=${OVERLAY:-production}
namespace=cluster
job=migrate-3-17-2

die() {
  printf 'k8s-%s: error: %s\n' "$command" "$*" >&2
  exit 1
}

say() { printf 'k8s-%s: %s\n' "$command" "$*"; }

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT TERM

# render OVERLAY: what kustomize makes of it, into $work/rendered.
render() {
  [ -d "k8s/overlays/$1" ] || die "there is no k8s/overlays/$1"
  kubectl kustomize "k8s/overlays/$1" >"$work/rendered" 2>"$work/said" ||
    die "k8s/overlays/$1 cannot be rendered: $(tail -n 1 "$work/said")"
}

# filled_in: nothing is left of what only the owner knows.
filled_in() {
  left=$(grep -Eo '(registry|database|login|mlflow)\.example\.com' "$work/rendered" | head -n 1)
  [ -z "$left" ] || die "k8s/overlays/$overlay still says $left: fill in what your cluster has, in the files there"
}

# there KIND NAME: whether the cluster has it.
there() {
  said=$(kubectl get "$@" --namespace "$namespace" 2>&1 >/dev/null) && return 0
  case $said in
    *NotFound*) return 1 ;;
    *) die "the cluster does not answer: $(printf '%s\n' "$said" | tail -n 1)" ;;
  esac
}

apply() { kubectl apply --server-side --force-conflicts --namespace "$namespace" "$@" >/dev/null; }

# made NAME FILE…: a Secret with these files of secrets/, into $work/secrets.
made() {
  name=$1
  shift
  for file in "$@"; do
    [ -f "secrets/$file" ] || die "secrets/$file is missing: run 'make init'"
    set -- "$@" "--from-file=$file=secrets/$file"
    shift
  done
  echo --- >>"$work/secrets"
  kubectl create secret generic "$name" --namespace "$namespace" --dry-run=client --output yaml "$@" >>"$work/secrets"
}

migrate() {
  render "$overlay"
  filled_in
  there namespace "$namespace" || die "there is no namespace $namespace: run 'make k8s-secrets' first"
  there secret mlflow-secrets || grep -q 'kind: ExternalSecret' "$work/rendered" ||
    die "there is no Secret mlflow-secrets: run 'make k8s-secrets' first"
  # A job cannot be changed, and one that is over is of no use.
  kubectl delete job "$job" --namespace "$namespace" --ignore-not-found --wait >/dev/null
  apply --selector stage=first --filename "$work/rendered"
  apply --selector stage=migrate --filename "$work/rendered"
  say "waits for the job $job"
  looks=0
  until kubectl wait job "$job" --namespace "$namespace" --for=condition=complete --timeout=5s >/dev/null 2>&1; do
    if kubectl wait job "$job" --namespace "$namespace" --for=condition=failed --timeout=1s >/dev/null 2>&1; then
      kubectl logs --namespace "$namespace" "job/$job" --tail=20 >&2 || true
      die "the job $job failed; what it said is above, and the servers are as they were"
    fi
    looks=$((looks + 1))
    [ "$looks" -lt 900 ] || die "the job $job does not end: 'kubectl describe job $job --namespace $namespace' says more"
    sleep 1
  done
  say "the schema is that of MLflow 3.17.2"
}

command -v kubectl >/dev/null || die "kubectl is not installed: see https://kubernetes.io/docs/tasks/tools/"
case $command in
  render)
    render "$overlay"
    cat "$work/rendered"
    ;;
  secrets)
    cat k8s/base/namespace.yaml >"$work/secrets"
    made mlflow-secrets crypto_kek_passphrase webhook_encryption_key db_password db_ca.pem s3_credentials htpasswd
    if [ -n "${PRINT:-}" ]; then
      cat "$work/secrets"
    else
      apply --filename "$work/secrets"
      say "the namespace $namespace has its Secrets; servers that run read them at their next start"
    fi
    ;;
  check)
    render "$overlay"
    filled_in
    there namespace "$namespace" ||
      die "what is rendered is whole, and the cluster has no namespace $namespace to try it in: run 'make k8s-secrets' first"
    kubectl apply --server-side --force-conflicts --dry-run=server --filename "$work/rendered" >/dev/null ||
      die "the cluster refuses k8s/overlays/$overlay; what it says is above"
    say "the cluster would take k8s/overlays/$overlay"
    ;;
  migrate) migrate ;;
  apply)
    migrate
    apply --filename "$work/rendered"
    kubectl rollout status deployment mlflow --namespace "$namespace" --timeout=15m
    kubectl rollout status deployment nginx --namespace "$namespace" --timeout=15m
    say "ready"
    ;;
  *) die "there are render, secrets, check, migrate and apply" ;;
esac
