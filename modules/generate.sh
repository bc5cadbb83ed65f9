#!/bin/sh
# Makes every committed .wasm from the .wat beside it:
#
#   modules/*.wat                        the plugins that the demo pushes
#   internal/proxywasm/testdata/*.wat    plugins that misbehave, for the tests
#   internal/xds/sandbox/proxytest/*.wat the same, for tests of proxies
#
#   modules/generate.sh           writes them
#   modules/generate.sh --check   writes nothing; fails if one differs from its source
#
# wat2wasm is Debian's package wabt (`apt-get install wabt`), 1.0.32 or later: it
# writes no time stamp, path or name section, so the bytes are the same everywhere.
# Without it nothing is written and this ends with status 3, saying so: the committed
# modules are enough to build and test.
set -eu
cd "$(dirname "$0")/.."

if ! command -v wat2wasm >/dev/null 2>&1; then
	echo "modules/generate.sh: wat2wasm is not installed (apt-get install wabt): the committed .wasm files are NOT checked" >&2
	exit 3
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
failed=0
for source in modules/*.wat internal/proxywasm/testdata/*.wat internal/xds/sandbox/proxytest/*.wat; do
	target="${source%.wat}.wasm"
	wat2wasm "$source" -o "$work/out.wasm"
	if [ "${1:-}" = --check ]; then
		if ! cmp -s "$work/out.wasm" "$target"; then
			echo "modules/generate.sh: $target does not come from $source: run make generate" >&2
			failed=1
		fi
	elif ! cmp -s "$work/out.wasm" "$target"; then
		cp "$work/out.wasm" "$target"
		chmod 644 "$target"
		echo "$target"
	fi
done
exit $failed
