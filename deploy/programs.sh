#!/bin/sh
# Builds what goes into the images and puts it into a folder, target/image unless another is named: both programs,
# static and without debug information, and this machine's certificate authorities.
set -eu
cd "$(dirname "$0")/.."
folder=${1:-target/image}

# Naming the target, even the machine's own, keeps procedural macros, which cannot be static, out of the RUSTFLAGS.
target=$(rustc -vV | sed -n 's/^host: //p')
RUSTFLAGS='-C target-feature=+crt-static' cargo build --release --locked --target "$target" \
    --package modelrelay-relay --package modelrelay-worker

mkdir -p "$folder"
for program in modelrelay-relay modelrelay-worker; do
    strip --strip-debug -o "$folder/$program" "${CARGO_TARGET_DIR:-target}/$target/release/$program"
done
cp "${SSL_CERT_FILE:-/etc/ssl/certs/ca-certificates.crt}" "$folder/ca-certificates.crt"
