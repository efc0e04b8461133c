#!/bin/sh
# Builds what goes into the images and puts it into a folder: the programs, static and without debug information, the list
# of what each is made of, and this machine's certificate authorities.
# usage: deploy/programs.sh [FOLDER [NAME...]], where FOLDER is target/image and the names are all unless given.
# PROFILE names another profile of Cargo's than release.
set -eu
cd "$(dirname "$0")/.."
folder=${1:-target/image}
if [ $# -gt 0 ]; then shift; fi
if [ $# -eq 0 ]; then set -- relay worker operator; fi
profile=${PROFILE:-release}

packages=
for name; do packages="$packages --package modelrelay-$name"; done
# Naming the target, even the machine's own, keeps procedural macros, which cannot be static, out of the RUSTFLAGS. The
# same sources give the same program wherever they stand.
target=$(rustc -vV | sed -n 's/^host: //p')
RUSTFLAGS="-C target-feature=+crt-static --remap-path-prefix=$PWD=/src --remap-path-prefix=${CARGO_HOME:-$HOME/.cargo}=/cargo" \
    cargo build --profile "$profile" --locked --target "$target" --bins $packages

mkdir -p "$folder"
# Cargo's folder of the profile `dev` is called otherwise.
built=${CARGO_TARGET_DIR:-target}/$target/$(echo "$profile" | sed 's/^dev$/debug/')
for name; do
    # The build ID is made of debug information as well, which names the folders that C sources were compiled in.
    strip --strip-debug --remove-section=.note.gnu.build-id -o "$folder/modelrelay-$name" "$built/modelrelay-$name"
    cargo xtask sbom "modelrelay-$name" >"$folder/modelrelay-$name.cdx.json"
done
cp "${SSL_CERT_FILE:-/etc/ssl/certs/ca-certificates.crt}" "$folder/ca-certificates.crt"
