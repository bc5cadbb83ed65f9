#!/usr/bin/env bash
# Makes a release: tools/release.sh VERSION, as v1.2.3. What it makes goes to dist/ and, with --publish, to the registry.
#
#   tools/release.sh v1.2.3             # gates, binaries, chart, manifests: needs no registry, changes nothing elsewhere
#   tools/release.sh v1.2.3 --publish   # and the image with its SBOM, the chart, the signatures. CI does this, for a tag
#
# Every tool is a Go module at a pinned version, which Go verifies against its checksum database.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

version=${1:?a version, as v1.2.3}
publish=${2:-}
[[ $version =~ ^v[0-9]+\.[0-9]+\.[0-9]+(-[0-9A-Za-z.]+)?$ ]] || { echo "release: $version is no version such as v1.2.3" >&2; exit 2; }
[[ -z $publish || $publish == --publish ]] || { echo "release: $publish: the only flag is --publish" >&2; exit 2; }

image=${IMAGE:-ghcr.io/stileproject/stile}
charts=${CHARTS:-oci://ghcr.io/stileproject/charts}
ko() { go run github.com/google/ko@v0.19.1 "$@"; }
cosign() { go run github.com/sigstore/cosign/v3/cmd/cosign@v3.1.3 "$@"; }
helm() { go run helm.sh/helm/v4/cmd/helm@v4.3.1 "$@"; }
say() { printf '\n== %s\n' "$*"; }

say "gate: the tree is the commit, and known vulnerabilities in what is linked"
if [[ -n $publish ]]; then
	[[ -z $(git status --porcelain) ]] || { echo "release: the tree is not clean" >&2; exit 1; }
	git tag --points-at HEAD | grep -qxF "$version" || { echo "release: HEAD is not tagged $version" >&2; exit 1; }
fi
if [[ -z ${SKIP_VULN:-} || -n $publish ]]; then make --no-print-directory vuln; fi

rm -rf dist
mkdir -p dist
say "binaries"
# The flags are those of .ko.yaml.
for target in linux/amd64 linux/arm64 darwin/amd64 darwin/arm64; do
	os=${target%/*} arch=${target#*/}
	folder=dist/stile_${version}_${os}_${arch}
	mkdir -p "$folder"
	CGO_ENABLED=0 GOOS=$os GOARCH=$arch go build -trimpath -ldflags "-s -w -X github.com/stileproject/stile/internal/cli.version=$version" -o "$folder/stile" ./cmd/stile
	cp LICENSE "$folder/"
	ln -s stile "$folder/kubectl-stile"
	tar --sort=name --owner=0 --group=0 --numeric-owner --mtime="@$(git log -1 --format=%ct)" -C dist -cf - "${folder#dist/}" | gzip -n > "$folder.tar.gz"
	rm -r "$folder"
done

say "manifests"
number=${version#v}
sed "s|$image:[0-9A-Za-z.-]*|$image:$version|" deploy/install.yaml > dist/install.yaml
cp deploy/crd.yaml dist/crd.yaml
tools/krew.sh "$version" dist > dist/stile.yaml

say "chart"
helm package charts/stile --version "$number" --app-version "$version" --destination dist

(cd dist && sha256sum -- *.tar.gz *.tgz *.yaml > SHA256SUMS)
[[ -n $publish ]] || { say "done: dist/"; ls -l dist; exit 0; }

say "image: who signed the base, then ko with an SBOM for each platform"
base=$(awk '/^defaultBaseImage:/ {print $2}' .ko.yaml)
cosign verify "$base" --certificate-oidc-issuer https://accounts.google.com --certificate-identity keyless@distroless.iam.gserviceaccount.com > dist/base-signature.json
VERSION=$version KO_DOCKER_REPO=$image ko build --bare --tags "$version" --sbom spdx --sbom-dir dist/sbom --image-refs dist/image ./cmd/stile
# The index and each platform's image, by digest: a tag can be moved after it was signed.
while read -r ref; do cosign sign --yes --recursive "$ref"; done < dist/image
for sbom in dist/sbom/*.spdx.json; do cosign attest --yes --type spdxjson --predicate "$sbom" "$(head -1 dist/image)"; done

say "chart: pushed and signed by digest"
helm push "dist/stile-$number.tgz" "$charts" 2>&1 | tee dist/chart
digest=$(awk '/^Digest:/ {print $2}' dist/chart)
cosign sign --yes "${charts#oci://}/stile@$digest"

say "sums"
cosign sign-blob --yes --bundle dist/SHA256SUMS.bundle dist/SHA256SUMS
say "done: $(cat dist/image)"
