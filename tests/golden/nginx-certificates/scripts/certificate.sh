#!/bin/sh
# Makes this stack's certificate, secrets/tls.pem, and the authority that clients are told to trust, secrets/tls_ca.pem.
# Both are made again when they are near their end or when the names change; otherwise they stay as they are.
set -eu
cd "$(dirname "$0")/../secrets"
umask 077

die() {
  printf 'init: error: %s\n' "$*" >&2
  exit 1
}
say() { printf 'init: %s\n' "$*"; }

# lasts FILE DAYS: whether a certificate is there and valid for so long.
lasts() { openssl x509 -in "$1" -noout -checkend "$(($2 * 86400))" >/dev/null 2>&1; }

# shows FILE LINE: whether a certificate says so.
shows() { openssl x509 -in "$1" -noout -text 2>/dev/null | grep -qx " *$2"; }

command -v openssl >/dev/null || die "openssl is not installed, and makes the certificate: install it, or choose tls=files"
names="DNS:mlflow.example.com, DNS:localhost, IP Address:127.0.0.1"

# The authority: ten years, renewed in the last.
authority_stays() {
  shows tls_ca.pem "DNS:mlflow.example.com" && lasts tls_ca.pem 365 && [ -s tls_ca.key ]
}

# The certificate: 397 days, renewed in the last 30. Clients need not hear of that.
certificate_stays() {
  shows tls.pem "$names" && lasts tls.pem 30 && [ -s tls.key ] && openssl verify -CAfile tls_ca.pem tls.pem >/dev/null 2>&1
}

if authority_stays && certificate_stays; then
  exit
fi

work=.certificate.new
rm -rf "$work"
mkdir "$work"
trap 'rm -rf "$work"' EXIT

cat >"$work/config" <<END
[req]
distinguished_name = name
prompt = no
[name]
CN = nginx-certificates
[authority]
basicConstraints = critical, CA:TRUE, pathlen:0
keyUsage = critical, keyCertSign, cRLSign
subjectKeyIdentifier = hash
# Whoever trusts it trusts it for these names and no others.
nameConstraints = critical, permitted;DNS:mlflow.example.com, permitted;DNS:localhost, permitted;IP:127.0.0.1/255.255.255.255
[server]
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature
extendedKeyUsage = serverAuth
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
subjectAltName = DNS:mlflow.example.com, DNS:localhost, IP:127.0.0.1
END

if ! authority_stays; then
  openssl ecparam -name prime256v1 -genkey -noout -out "$work/tls_ca.key"
  openssl req -x509 -new -sha256 -days 3650 -subj "/CN=nginx-certificates authority" -config "$work/config" -extensions authority \
    -key "$work/tls_ca.key" -out "$work/tls_ca.pem"
  mv "$work/tls_ca.key" "$work/tls_ca.pem" .
  say "made secrets/tls_ca.pem: give it to every client"
fi

if ! certificate_stays; then
  openssl ecparam -name prime256v1 -genkey -noout -out "$work/tls.key"
  openssl req -new -sha256 -config "$work/config" -key "$work/tls.key" -out "$work/request"
  openssl x509 -req -sha256 -days 397 -in "$work/request" -CA tls_ca.pem -CAkey tls_ca.key -set_serial "0x$(openssl rand -hex 16)" \
    -extfile "$work/config" -extensions server -out "$work/tls.pem" 2>/dev/null || die "openssl could not sign the certificate"
  mv "$work/tls.key" "$work/tls.pem" .
  say "made secrets/tls.pem for $names"
fi
