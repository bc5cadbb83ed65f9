package architecture

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

// room says what a room may import of the house. Its tests may import more, whatever they need to stand the room up,
// but never what a fence keeps to others.
type room struct {
	Who string   // pattern of rooms; the first that matches counts
	May []string // patterns of rooms that it may import
	Why string
}

var rooms = []room{
	{"cmd/stile", []string{"internal/cli", "internal/preflight"},
		"main ends the process and does nothing else: everything a verb does is tested in process; preflight needs a process of its own"},
	{"api/...", []string{"internal/reference"},
		"types and their validation are pure; an image reference is part of a plugin's URL"},
	{"internal/secret/...", nil, "everything may use it, so it may use nothing"},
	{"internal/reference/...", nil, "everything may use it, so it may use nothing"},
	{"internal/spelling/...", nil, "everything may use it, so it may use nothing"},
	{"internal/wasm/...", []string{"api/..."}, "pure: bytes in, findings out"},
	{"internal/placement/...", []string{"api/..."}, "pure: a pod and platforms in, an affinity out"},
	{"internal/plugin/...", []string{"api/..."}, "pure: the semantics know nothing of registries, proofs or xDS"},
	{"internal/document/...", []string{"api/...", "internal/secret", "internal/reference", "internal/spelling"},
		"files to typed objects; what they mean is for others"},
	{"internal/oci/...", []string{"internal/reference", "internal/secret", "api/..."},
		"the room that reveals secrets knows nothing of who asks"},
	{"internal/access/...", []string{"internal/oci", "internal/reference", "internal/secret", "api/..."},
		"a proof depends on the registry's answer and on nothing that is made of it"},
	{"internal/store/...", []string{"internal/secret", "internal/reference"},
		"bytes by digest, whoever they are for"},
	{"internal/content/...", []string{"internal/access", "internal/oci", "internal/reference", "internal/secret", "internal/store/...", "internal/wasm", "api/..."},
		"content is reached through a proof alone"},
	{"internal/xds/...", []string{"internal/plugin", "internal/proxywasm", "internal/secret", "internal/reference", "internal/spelling", "api/...", "modules"},
		"a Plan becomes Envoy's configuration; how modules are come by is not its business"},
	{"internal/proxywasm/...", nil, "a host for modules, of use without the rest"},
	{"internal/preflight/...", []string{"internal/proxywasm", "internal/wasm", "api/..."},
		"a stranger's module is run in a process of its own, and what comes back is findings"},
	{"internal/serve/...", []string{"internal/secret", "api/..."}, "it declares what it needs of the engine itself"},
	{"internal/admin/...", []string{"internal/secret", "api/..."}, "it declares what it needs of the engine itself"},
	{"internal/source/...", []string{"internal/document", "internal/plugin", "internal/oci", "internal/secret", "internal/reference", "api/..."},
		"where the world comes from; never what is made of it"},
	{"internal/kubetest", nil, "a real API server for tests of every room that speaks to one"},
	{"internal/engine/...", []string{"internal/plugin", "internal/access", "internal/content", "internal/preflight", "internal/wasm", "internal/xds", "internal/oci",
		"internal/source", "internal/document", "internal/secret", "internal/reference", "api/..."},
		"it joins rooms; where resources come from and who asks it, it is told"},
	{"internal/controller/...", []string{"internal/source/...", "internal/engine", "internal/placement", "internal/content",
		"internal/access", "internal/oci", "internal/secret", "internal/reference", "internal/document", "api/..."},
		"one small package per controller, none of which knows Envoy"},
	{"internal/cli/...", []string{"internal/...", "api/...", "modules/..."}, "all the wiring"},
	{"internal/canary/...", []string{"internal/secret"}, "a watcher for tests of every room"},
	{"internal/architecture/...", nil, "it reads the house and is no part of it"},
	{"modules/...", nil, "modules that run in a proxy, and their bytes"},
	{"charts/...", nil, "the rights of a cluster's account are a table that imports nothing"},
	{"examples", []string{"internal/document"}, "what a user copies, and a test that it is right"},
	{"test/...", []string{"internal/...", "api/...", "test/...", "modules/..."}, "stories across rooms"},
}

// fence keeps an import to the rooms that are there for it, in tests too.
type fence struct {
	What []string // patterns of import paths
	Only []string // patterns of rooms
	Why  string
}

var fences = []fence{
	{[]string{"github.com/google/go-containerregistry/..."}, []string{"internal/oci/..."},
		"one room speaks to registries; its guards, limits and redaction cannot be walked around"},
	{[]string{"github.com/envoyproxy/...", "github.com/cncf/xds/..."}, []string{"internal/xds/...", "test/envoy", "test/cluster"},
		"one room knows Envoy's types, so that the semantics outlive them"},
	{[]string{"google.golang.org/grpc/..."}, []string{"internal/xds/...", "internal/cli/...", "test/envoy", "test/cluster"},
		"gRPC is how Envoy asks, and no room's business but that one's; cli listens"},
	{[]string{"k8s.io/client-go/...", "sigs.k8s.io/controller-runtime/..."}, []string{"internal/controller/...", "internal/source/kube/...", "internal/cli/...", "internal/kubetest", "test/..."},
		"a folder of YAML is a full source; Kubernetes is one of two"},
	{[]string{"github.com/spf13/..."}, []string{"internal/cli/..."}, "rooms take values, not flags"},
	{[]string{"github.com/tetratelabs/wazero/..."}, []string{"internal/proxywasm", "internal/wasm", "internal/xds/sandbox/..."},
		"a module of a stranger is run in one place, with its limits"},
	{[]string{"unsafe", "plugin", "C"}, nil, "secrets without a printable form are a promise of the type system"},
}

// pure rooms decide; they do not wait, look at a clock, or touch the machine.
var pure = []string{"api/...", "internal/plugin", "internal/wasm", "internal/placement", "internal/secret", "internal/reference", "internal/document"}

// impure is what pure rooms may not use: whole packages, or single names of them.
var impure = map[string][]string{
	"context": nil, "os": nil, "os/...": nil, "net/http/...": nil, "net/rpc/...": nil, "syscall": nil, "database/sql/...": nil,
	"math/rand": nil, "math/rand/v2": nil,
	"time": {"Now", "Since", "Until", "Sleep", "After", "AfterFunc", "Tick", "NewTimer", "NewTicker"},
	"net":  {"Dial", "DialTimeout", "Dialer", "Listen", "ListenPacket", "ListenConfig", "LookupHost", "LookupIP", "LookupAddr", "Resolver", "DefaultResolver", "Interfaces", "InterfaceAddrs"},
}

// reveals is where Secret.Reveal may be called.
var reveals = []string{"internal/oci/...", "internal/secret"}

// ioFree is what the engine may not use: it has no I/O of its own, so that nothing in its loop waits.
var ioFree = map[string][]string{
	"os": nil, "os/...": nil, "net": nil, "net/http/...": nil, "google.golang.org/grpc/...": nil,
	"time": {"Sleep"},
}

// sleepers are tests that may sleep outside a synctest bubble.
var sleepers = map[string]string{
	"internal/cli/serve_test.go": "asks a server until it answers as it should",
}

// maxLines is the length of a file that a reader can still hold in mind; generated ones and tests are free.
const maxLines = 500

// breaches returns what the rules say against f, each with its reason.
func breaches(f file) []string {
	var all []string
	say := func(format string, a ...any) { all = append(all, f.Name+": "+fmt.Sprintf(format, a...)) }

	if r, ok := roomOf(f.Room); !ok {
		say("the room %s has no rule yet: add it to the table in internal/architecture", f.Room)
	} else if !f.Test {
		for _, i := range f.Imports {
			if ours(i) && !match(r.Who, i) && !matchAny(r.May, i) {
				say("%s may not import %s: %s", f.Room, i, r.Why)
			}
		}
	}
	for _, fe := range fences {
		for _, i := range f.Imports {
			if matchAny(fe.What, i) && !matchAny(fe.Only, f.Room) {
				say("only %v may import %s: %s", fe.Only, i, fe.Why)
			}
		}
	}
	if matchAny(pure, f.Room) && !f.Test {
		for _, u := range uses(f, impure) {
			say("%s is pure, it may not use %s: take the value as an argument", f.Room, u)
		}
	}
	if f.Room == "internal/engine" && !f.Test {
		for _, u := range uses(f, ioFree) {
			say("the engine does no I/O of its own, it may not use %s", u)
		}
	}
	if !matchAny(reveals, f.Room) {
		for _, u := range f.Uses {
			if u.Name == "Reveal" {
				say("line %d: Reveal is called only inside internal/oci, so that a secret has one way out", u.Line)
			}
		}
	}
	// Benchmarks and load tests pace their load by the real clock.
	bubble := slices.Contains(f.Imports, "testing/synctest") ||
		strings.HasSuffix(f.Name, "bench_test.go") || strings.HasSuffix(f.Name, "load_test.go")
	if _, polls := sleepers[f.Name]; !bubble && !polls {
		for _, u := range f.Uses {
			if u.Path == "time" && u.Name == "Sleep" {
				say("line %d: time.Sleep belongs into a synctest bubble: wait for what is awaited", u.Line)
			}
		}
	}
	if !f.Test && f.Lines > maxLines && !strings.Contains(f.Name, "zz_generated") {
		say("%d lines, more than %d: would a reader know what is in it?", f.Lines, maxLines)
	}
	return all
}

func roomOf(name string) (room, bool) {
	i := slices.IndexFunc(rooms, func(r room) bool { return match(r.Who, name) })
	if i < 0 {
		return room{}, false
	}
	return rooms[i], true
}

// uses returns what f uses of a list of packages and names.
func uses(f file, forbidden map[string][]string) []string {
	var all []string
	for pattern, names := range forbidden {
		for _, i := range f.Imports {
			if len(names) == 0 && match(pattern, i) {
				all = append(all, i)
			}
		}
		for _, u := range f.Uses {
			if slices.Contains(names, u.Name) && u.Path == pattern {
				all = append(all, fmt.Sprintf("%s.%s (line %d)", u.Path, u.Name, u.Line))
			}
		}
	}
	slices.Sort(all)
	return slices.Compact(all)
}

func TestTheHouseKeepsItsRules(t *testing.T) {
	t.Parallel()
	files := tree(t)
	if len(files) == 0 {
		t.Fatal("no Go file found: the rules were held against nothing")
	}
	for _, f := range files {
		for _, b := range breaches(f) {
			t.Error(b)
		}
	}
}

// A rule that cannot be broken is no rule: each is shown to bite.
func TestTheRulesBite(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name, file, source, want string
	}{
		{"a registry library outside oci", "internal/access/a.go",
			`package access; import _ "github.com/google/go-containerregistry/pkg/name"`, "only [internal/oci/...] may import"},
		{"a registry library in a test outside oci", "internal/cli/a_test.go",
			`package cli; import _ "github.com/google/go-containerregistry/pkg/registry"`, "only [internal/oci/...] may import"},
		{"Envoy's types outside xds", "internal/plugin/a.go",
			`package plugin; import _ "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"`, "one room knows Envoy's types"},
		{"client-go in a room", "internal/engine/a.go",
			`package engine; import _ "k8s.io/client-go/kubernetes"`, "Kubernetes is one of two"},
		{"a room that looks up", "internal/oci/a.go",
			`package oci; import _ "github.com/stileproject/stile/internal/access"`, "internal/oci may not import internal/access"},
		{"semantics that ask a proof", "internal/plugin/a.go",
			`package plugin; import _ "github.com/stileproject/stile/internal/access"`, "internal/plugin may not import internal/access"},
		{"a clock in a pure room", "internal/plugin/a.go",
			`package plugin; import clock "time"; var t = clock.Now()`, "it may not use time.Now (line 1)"},
		{"a duration in a pure room", "internal/plugin/a.go", `package plugin; import "time"; var d = time.Second`, ""},
		{"a context in a pure room", "internal/wasm/a.go", `package wasm; import _ "context"`, "may not use context"},
		{"a file in a pure room", "internal/secret/a.go", `package secret; import _ "os"`, "may not use os"},
		{"a lookup in a pure room", "api/v1alpha1/a.go", `package v1alpha1; import "net"; var l = net.LookupHost`, "net.LookupHost"},
		{"a secret revealed elsewhere", "internal/cli/a.go", `package cli; func f(s S) { s.Reveal() }`, "Reveal is called only inside internal/oci"},
		{"a secret revealed as a value", "internal/xds/a.go", `package xds; func f(s S) any { return s.Reveal }`, "Reveal is called only inside internal/oci"},
		{"a secret revealed in a test", "internal/engine/a_test.go", `package engine; func f(s S) { s.Reveal() }`, "Reveal is called only"},
		{"a secret revealed where it may be", "internal/oci/a.go", `package oci; func f(s S) { s.Reveal() }`, ""},
		{"an engine that dials", "internal/engine/a.go", `package engine; import _ "net/http"`, "no I/O of its own"},
		{"a test that sleeps", "internal/oci/a_test.go", `package oci; import "time"; func f() { time.Sleep(1) }`, "belongs into a synctest bubble"},
		{"a bubble that sleeps", "internal/oci/a_test.go",
			`package oci; import ("time"; _ "testing/synctest"); func f() { time.Sleep(1) }`, ""},
		{"unsafe", "internal/oci/a.go", `package oci; import _ "unsafe"`, "promise of the type system"},
		{"main that does more", "cmd/stile/main.go",
			`package main; import _ "github.com/stileproject/stile/internal/engine"`, "main ends the process"},
		{"a room nobody planned", "internal/util/a.go", `package util`, "has no rule yet"},
		{"a long file", "internal/oci/a.go", "package oci\n" + strings.Repeat("\n", maxLines), "more than 500"},
		{"a long test", "internal/oci/a_test.go", "package oci\n" + strings.Repeat("\n", maxLines), ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			f, err := read(test.file, test.file, test.source)
			if err != nil {
				t.Fatal(err)
			}
			got := strings.Join(breaches(f), "\n")
			if test.want == "" && got != "" {
				t.Errorf("want no breach, got %s", got)
			}
			if !strings.Contains(got, test.want) {
				t.Errorf("want a breach that says %q, got %q", test.want, got)
			}
		})
	}
}
