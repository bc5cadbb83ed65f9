#!/usr/bin/env bash
# Prints the krew manifest of "kubectl stile" for the archives of a release: tools/krew.sh VERSION FOLDER.
set -euo pipefail
version=${1:?a version, as v1.2.3}
folder=${2:?the folder of the archives}

cat <<EOF
apiVersion: krew.googlecontainertools.github.com/v1alpha2
kind: Plugin
metadata:
  name: stile
spec:
  version: $version
  homepage: https://github.com/stileproject/stile
  shortDescription: Wasm plugins for Envoy, how they stand and why
  description: |
    Shows what stile does in a cluster: plugins and their conditions, who may read which
    image, what each proxy has accepted. Also validates, explains and translates plugins,
    and inspects and checks their images.
  caveats: |
    Reading plugins needs list on wasmplugins; proofs and proxies need list on pods and
    create on pods/portforward in stile's namespace.
  platforms:
EOF
for target in linux/amd64 linux/arm64 darwin/amd64 darwin/arm64; do
	os=${target%/*} arch=${target#*/}
	name=stile_${version}_${os}_${arch}
	cat <<EOF
  - selector: {matchLabels: {os: $os, arch: $arch}}
    uri: https://github.com/stileproject/stile/releases/download/$version/$name.tar.gz
    sha256: $(sha256sum "$folder/$name.tar.gz" | cut -d' ' -f1)
    files: [{from: $name/stile, to: .}, {from: $name/LICENSE, to: .}]
    bin: stile
EOF
done
