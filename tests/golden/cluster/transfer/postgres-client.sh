#!/bin/sh
# Collects PostgreSQL's own programs from its image, each with every library that it needs, the C library too: so they run in
# an image of another Debian, or of another system. Runs while the image is built.
set -eu
folder=$(dirname "$(readlink -f "$(command -v postgres)")")
mkdir -p /client/bin /client/lib
for tool in pg_dump pg_restore psql; do
  cp "$folder/$tool" /client/lib/
  needed=$(ldd "$folder/$tool")
  printf '%s\n' "$needed" | sed -n 's|.*=> \(/[^ ]*\) .*|\1|p' | while read -r library; do cp -L "$library" /client/lib/; done
  loader=$(printf '%s\n' "$needed" | sed -n 's|^[[:space:]]*\(/[^ ]*\) (.*|\1|p')
  [ -z "$loader" ] || cp -L "$loader" /client/lib/
  {
    echo '#!/bin/sh'
    echo "exec /opt/postgres/lib/$(basename "$loader") --library-path /opt/postgres/lib /opt/postgres/lib/$tool \"\$@\""
  } >"/client/bin/$tool"
  chmod 755 "/client/bin/$tool"
done
