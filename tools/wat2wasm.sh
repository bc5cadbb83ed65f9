#!/usr/bin/env bash
# Assembles every .wat of the folders named into the .wasm beside it. Both are committed; `make verify` compares.
set -euo pipefail

if ! command -v wat2wasm >/dev/null; then
	if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
		{ apt-get update && apt-get install -y --no-install-recommends wabt; } >&2
	else
		echo "wat2wasm is needed: apt-get install wabt" >&2
		exit 1
	fi
fi
for folder in "$@"; do
	for source in "$folder"/*.wat; do
		wat2wasm "$source" -o "${source%.wat}.wasm"
	done
done
