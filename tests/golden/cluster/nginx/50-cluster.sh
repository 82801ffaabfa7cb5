#!/bin/sh
# For k8s/: nginx's entrypoint runs this after it has filled in the template. In a cluster a Service keeps its address, so
# names are looked up once, by the system's own resolver, which knows the cluster's short names.
set -eu
sed -i -e '/^resolver /d' -e '/^ *server /s/ resolve\([ ;]\)/\1/' /run/site/mlflow.conf
