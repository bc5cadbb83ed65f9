package xds

import (
	"crypto/sha256"
	"encoding/hex"
	"runtime"
	"slices"
	"strings"
	"sync"
	"weak"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
)

// versionLength is the number of hexadecimal digits in a version: 96 bits of SHA-256, more
// than enough for equal versions to mean equal content.
const versionLength = 24

// Snapshot is everything that one group of proxies shall have: the result of Translate. It is
// immutable, shared by pointer, and safe for concurrent use.
type Snapshot struct {
	resources [len(servedTypes)][]*Resource
	names     [len(servedTypes)]map[string]*Resource
	standIns  map[string]*Resource // of each extension, by name
	bare      bool                 // nothing is known of the listeners and clusters that its proxies shall have
}

// servedTypes are the types that stile serves, in the order in which additions are pushed.
var servedTypes = [...]string{ClusterType, ListenerType, RouteType, ExtensionType}

// The indexes of the types in servedTypes.
const (
	clusters = iota
	listeners
	routes
	extensions
)

// typeIndex returns the index of a type in servedTypes, or -1 if stile does not serve it.
func typeIndex(url string) int { return slices.Index(servedTypes[:], url) }

// NewSnapshot returns the snapshot of the given resources; the later of two of one type and
// name counts. Resources of other types are left out.
func NewSnapshot(resources ...*Resource) *Snapshot {
	s := &Snapshot{}
	for i := range s.names {
		s.names[i] = map[string]*Resource{}
	}
	for _, r := range resources {
		if i := typeIndex(r.Type); i >= 0 {
			s.names[i][r.Name] = r
		}
	}
	for i, byName := range s.names {
		for _, r := range byName {
			s.resources[i] = append(s.resources[i], r)
		}
		sortResources(s.resources[i])
	}
	return s
}

// Resources returns the resources of one type, sorted by name. The result is shared.
func (s *Snapshot) Resources(typeURL string) []*Resource {
	i := typeIndex(typeURL)
	if s == nil || i < 0 {
		return nil
	}
	return s.resources[i]
}

// Resource returns one resource; nil if the snapshot does not have it.
func (s *Snapshot) Resource(typeURL, name string) *Resource {
	i := typeIndex(typeURL)
	if s == nil || i < 0 {
		return nil
	}
	return s.names[i][name]
}

// Equal reports whether both snapshots give every proxy the same.
func (s *Snapshot) Equal(t *Snapshot) bool {
	if s == nil || t == nil {
		return s == t
	}
	for i := range s.resources {
		if !slices.EqualFunc(s.resources[i], t.resources[i], sameResource) {
			return false
		}
	}
	return true
}

func sameResource(a, b *Resource) bool {
	return a == b || a.Name == b.Name && a.Version == b.Version && a.Hold == b.Hold && a.Keep == b.Keep && a.KeptVersion == b.KeptVersion
}

// Fingerprint is equal for snapshots that are Equal: by it proxies are grouped by result.
func (s *Snapshot) Fingerprint() string {
	h := sha256.New()
	for _, list := range s.resources {
		for _, r := range list {
			flags := ""
			if r.Hold {
				flags += "h"
			}
			if r.Keep {
				flags += "k"
			}
			for _, part := range []string{r.Name, r.Version, flags, r.KeptVersion} {
				h.Write([]byte(part))
				h.Write([]byte{0})
			}
		}
		h.Write([]byte{1})
	}
	return hex.EncodeToString(h.Sum(nil))[:versionLength]
}

func sortResources(list []*Resource) {
	slices.SortFunc(list, func(a, b *Resource) int { return strings.Compare(a.Name, b.Name) })
}

// variation is one variation of a resource, shared while somebody has it.
type variation struct {
	sync.Mutex
	try  int
	made weak.Pointer[anypb.Any]
}

// variant returns the bytes of try n ≥ 1. Proxies that are at the same try share them.
func (r *Resource) variant(n int) *anypb.Any {
	if r.varied == nil {
		return r.vary(n)
	}
	r.varied.Lock()
	defer r.varied.Unlock()
	if a := r.varied.made.Value(); a != nil && r.varied.try == n {
		return a
	}
	a := r.vary(n)
	r.varied.try, r.varied.made = n, weak.Make(a)
	return a
}

// newResource packs m, deterministically, and versions it by a hash of its bytes.
func newResource(typeURL, name string, m proto.Message) *Resource {
	a := mustAny(m)
	return intern(typeURL, name, version(a.GetValue()), func() *Resource { return &Resource{Any: a} })
}

func version(parts ...[]byte) string {
	h := sha256.New()
	for _, p := range parts {
		h.Write(p)
	}
	return hex.EncodeToString(h.Sum(nil))[:versionLength]
}

// mustAny packs a message of ours. Packing fails for invalid UTF-8 alone, and whatever was
// parsed from JSON or YAML has none.
func mustAny(m proto.Message) *anypb.Any {
	a := &anypb.Any{}
	if err := anypb.MarshalFrom(a, m, deterministic); err != nil {
		panic("xds: pack " + string(m.ProtoReflect().Descriptor().FullName()) + ": " + err.Error())
	}
	return a
}

// Equal resources are one value, whichever group they were made for: a module that a hundred
// groups share is marshalled and kept in memory once. The table holds them weakly.
var interned struct {
	sync.Mutex
	byKey map[internKey]weak.Pointer[Resource]
}

type internKey struct{ typeURL, name, version string }

// intern returns the living resource of that type, name and version, or makes it. create
// leaves those three to intern.
func intern(typeURL, name, version string, create func() *Resource) *Resource {
	key := internKey{typeURL, name, version}
	interned.Lock()
	if r := interned.byKey[key].Value(); r != nil {
		interned.Unlock()
		return r
	}
	interned.Unlock()
	r := create()
	r.Type, r.Name, r.Version = typeURL, name, version
	interned.Lock()
	defer interned.Unlock()
	if other := interned.byKey[key].Value(); other != nil {
		return other
	}
	if interned.byKey == nil {
		interned.byKey = map[internKey]weak.Pointer[Resource]{}
	}
	pointer := weak.Make(r)
	interned.byKey[key] = pointer
	runtime.AddCleanup(r, func(key internKey) {
		interned.Lock()
		defer interned.Unlock()
		if interned.byKey[key] == pointer {
			delete(interned.byKey, key)
		}
	}, key)
	return r
}
