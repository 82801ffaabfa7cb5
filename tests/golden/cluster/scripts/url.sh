#!/bin/sh
# Prints the address of the stack.
cd "$(dirname "$0")/.." || exit 1
setting() { sed -n "s/^$1=//p" .env 2>/dev/null | tail -n 1; }
port=$(setting HTTP_PORT)
url=$(setting PUBLIC_URL)
echo "${url:-http://localhost:${port:-8080}}"
