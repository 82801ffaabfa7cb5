#!/bin/sh
# Leaves the template for good: takes away what only its updates need, and says so. The stack goes on as it is.
set -eu
cd "$(dirname "$0")/.."

if [ -n "$(git status --porcelain)" ]; then
  echo "eject: error: this repository has changes that are not committed: commit them first, so that you can go back" >&2
  exit 1
fi

# The targets, each with the blank line after it, and what the README says of them.
sed -i.before -e '/^update: ##/,/^$/d' -e '/^check-update: ##/,/^$/d' -e '/^eject: ##/,/^$/d' Makefile
sed -i.before -e '/^| .make check-update. /d' -e '/^| .make update. /d' -e '/^| .make eject. /d' \
  -e 's/, .UPDATES=1. also asks for a newer template//' -e '/^## Which files are yours$/,$d' README.md
rm Makefile.before README.md.before
git rm --quiet --force .copier-answers.yml .github/workflows/update.yml renovate.json scripts/update.sh scripts/eject.sh

git status --short
cat <<'END'
eject: done, and nothing is committed yet: 'git checkout HEAD -- .' takes it back.
Every file is yours now. From here on you raise the versions: images in compose.yaml and mlflow/Dockerfile, packages in
mlflow/requirements. 'make upgrade' then brings the stack there; it saves the database before, and goes back if that fails.
END
