#!/usr/bin/env bash
# Prints the folder of the pinned kube-apiserver, etcd, kube-scheduler and kubectl, building them first where need be.
# stdout is the path alone.
#
# STILE_KUBE_ASSETS=folder overrides everything. Otherwise they are built once, from the versions that go.mod here pins,
# into ${XDG_CACHE_HOME:-$HOME/.cache}/stile: some 8 minutes on 2 cores with empty caches.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
version=$(awk '$1 == "k8s.io/kubernetes" || $2 == "k8s.io/kubernetes" {for (i = 1; i <= NF; i++) if ($i ~ /^v1\./) {print substr($i, 2); exit}}' "$here/go.mod")
programs=(kube-apiserver etcd kube-scheduler kubectl)

complete() {
	local p
	for p in "${programs[@]}"; do [ -x "$1/$p" ] || return 1; done
}

if [ -n "${STILE_KUBE_ASSETS:-}" ]; then
	complete "$STILE_KUBE_ASSETS" || {
		printf 'kube: STILE_KUBE_ASSETS=%s does not hold %s\n' "$STILE_KUBE_ASSETS" "${programs[*]}" >&2
		exit 1
	}
	printf '%s\n' "$STILE_KUBE_ASSETS"
	exit 0
fi

cache=${XDG_CACHE_HOME:-$HOME/.cache}/stile
folder=$cache/kube-$version-$(go env GOOS)-$(go env GOARCH)
if ! complete "$folder"; then
	mkdir -p "$cache"
	printf 'kube: building %s at %s, once: this takes minutes\n' "${programs[*]}" "$version" >&2
	work=$(mktemp -d "$cache/kube.XXXXXX")
	trap 'rm -rf "$work"' EXIT
	stamp=k8s.io/component-base/version
	flags="-s -w -X $stamp.gitVersion=v$version -X $stamp.gitMajor=1 -X $stamp.gitMinor=$(cut -d. -f2 <<<"$version") -X $stamp.gitTreeState=clean"
	(cd "$here" && CGO_ENABLED=0 go build -trimpath -ldflags "$flags" -o "$work/" \
		k8s.io/kubernetes/cmd/kube-apiserver k8s.io/kubernetes/cmd/kube-scheduler k8s.io/kubernetes/cmd/kubectl go.etcd.io/etcd/server/v3) >&2
	mv "$work/server" "$work/etcd"
	rm -rf "$folder"
	mv "$work" "$folder"
	trap - EXIT
	chmod 755 "$folder"
fi
printf '%s\n' "$folder"
