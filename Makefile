# make help says what there is. Everything a target needs beyond git, make and Go it fetches or builds itself,
# at pinned versions, into $(CACHE); nothing is put into the tree.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

CACHE     := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/stile
PKG       ?= ./...
# All of vet runs within go test: on its own it would compile the world a second time, without the race detector.
TESTFLAGS ?= -vet=all -shuffle=on -timeout=20m
COUNT     ?= 20
FUZZTIME  ?= 10s

# Modules of their own: what only tests need must not weigh on the binary's go.mod.
NESTED := $(patsubst ./%/go.mod,%,$(shell find . -mindepth 2 -name go.mod -not -path './tools/*' -not -path '*/testdata/*' | sort))

LINT_VERSION := $(shell awk '$$1 ~ /golangci\/golangci-lint\/v2$$/ {print $$2}' tools/go.mod)
LINT         := $(CACHE)/tools/golangci-lint-$(LINT_VERSION)-$(shell go env GOVERSION)

# Tests find the real Envoy in STILE_ENVOY. STILE_NO_ENVOY=1 leaves those tests out, loudly.
envoy = if [ -z "$${STILE_NO_ENVOY:-}" ]; then STILE_ENVOY=$$(test/envoy/fetch.sh); export STILE_ENVOY; fi
# Tests find a real kube-apiserver, etcd, kube-scheduler and kubectl in STILE_KUBE_ASSETS. STILE_NO_KUBE=1 leaves those tests out, loudly.
kube  = if [ -z "$${STILE_NO_KUBE:-}" ]; then STILE_KUBE_ASSETS=$$(test/kube/assets.sh); export STILE_KUBE_ASSETS; fi
each  = for module in $(NESTED); do echo "== $$module"; (cd "$$module" && $(1)); done

.PHONY: help build test lint generate verify e2e deflake bench fuzz vuln soak

help: ## what there is
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

build: ## bin/stile
	go build -trimpath -o bin/stile ./cmd/stile

test: ## vet and every test, with the race detector, a real Envoy and a real Kubernetes API
	@$(envoy); $(kube); race=$$(tools/race.sh); set -x; \
	go test $$race $(TESTFLAGS) $(PKG)
	@$(envoy); $(kube); race=$$(tools/race.sh); \
	$(call each,go test $$race $(TESTFLAGS) ./...)

lint: $(LINT) ## golangci-lint at the version of tools/go.mod, then the scripts
	$(LINT) run $(PKG)
	bash -n .ci/run tools/*.sh test/envoy/*.sh test/kube/*.sh

# Its name holds its version and Go's: a clone's newer time stamps build nothing anew.
$(LINT):
	@mkdir -p $(@D)
	@echo "building golangci-lint $(LINT_VERSION), once: this takes minutes"
	cd tools && go build -o $@.tmp github.com/golangci/golangci-lint/v2/cmd/golangci-lint
	mv -f $@.tmp $@

generate: ## write what is generated: wasm from wat, deepcopy, docs, goldens
	go generate ./...

verify: generate lint ## generate changes nothing, go.mod is tidy, lint is silent
	go mod verify
	go mod tidy -diff
	@changed=$$(git status --porcelain); if [ -n "$$changed" ]; then \
		echo "the tree is not clean after 'make generate': commit what follows"; echo "$$changed"; git --no-pager diff; exit 1; fi

e2e: ## the demo with the sandbox proxy and with a real Envoy, then the real-Envoy tests
	go run ./cmd/stile demo --once --proxy sandbox -o json
	@$(envoy); set -x; \
	go run ./cmd/stile demo --once --proxy envoy -o json; \
	go test -count=1 -timeout=20m ./test/envoy/... ./test/e2e/...

deflake: ## the tests COUNT times over, shuffled: make deflake PKG=./internal/access COUNT=100
	@$(envoy); $(kube); race=$$(tools/race.sh); set -x; \
	go test $$race -shuffle=on -count=$(COUNT) -failfast -timeout=60m $(PKG)

bench: ## the benchmarks: make bench PKG=./internal/access
	go test -run='^$$' -bench=. -benchmem -timeout=60m $(PKG)

soak: ## slow, and no part of CI: proxies come, go and refuse for SOAK (10m), and nothing grows
	STILE_SOAK=$(or $(SOAK),10m) go test -count=1 -run='^TestSoak$$' -v -timeout=60m ./internal/xds

fuzz: ## each fuzz target for FUZZTIME
	@for dir in $$(grep -rlE '^func Fuzz[A-Z]' --include='*_test.go' internal api cmd 2>/dev/null | xargs -r -n1 dirname | sort -u); do \
		for target in $$(grep -hoE '^func Fuzz[A-Za-z0-9_]+' $$dir/*_test.go | cut -d' ' -f2 | sort -u); do \
			echo "== $$dir $$target"; go test -run='^$$' -fuzz="^$$target\$$" -fuzztime=$(FUZZTIME) ./$$dir; \
		done; done

vuln: ## known vulnerabilities in what is linked
	go tool -modfile=tools/go.mod govulncheck ./...
