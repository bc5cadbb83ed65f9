#!/usr/bin/env bash
# Prints -race if the race detector can be used here, else nothing, and says so. It needs cgo and so a C compiler;
# root on Debian gets one installed, as CI starts from a machine that has Go alone.
set -euo pipefail

compiler() { command -v "$(go env CC)" >/dev/null; }
if ! compiler && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
	echo "race: installing gcc" >&2
	export DEBIAN_FRONTEND=noninteractive
	{ apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev; } >&2 || true
fi
if compiler && [ "$(CGO_ENABLED=${CGO_ENABLED:-1} go env CGO_ENABLED)" = 1 ]; then
	echo -race
else
	echo "race: NO RACE DETECTOR: it needs cgo and a C compiler (apt-get install gcc libc6-dev); testing without" >&2
fi
