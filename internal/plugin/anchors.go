package plugin

import (
	"slices"
	"strings"

	"github.com/stileproject/stile/api/v1alpha1"
)

// class is what a filter means for the places of the phases.
type class uint8

const (
	noAnchor class = iota
	alwaysFirst
	authentication
	authorization
	statistics
)

// The known anchors, by type URL without its prefix. Names are free in Envoy and prove nothing.
var (
	httpAnchors = map[string]class{
		"io.istio.http.peer_metadata.Config":                           alwaysFirst,
		"envoy.extensions.filters.http.jwt_authn.v3.JwtAuthentication": authentication,
		"envoy.extensions.filters.http.oauth2.v3.OAuth2":               authentication,
		"envoy.extensions.filters.http.basic_auth.v3.BasicAuth":        authentication,
		"envoy.extensions.filters.http.api_key_auth.v3.ApiKeyAuth":     authentication,
		"istio.envoy.config.filter.http.authn.v2alpha1.FilterConfig":   authentication,
		httpRBAC: authorization,
		"envoy.extensions.filters.http.ext_authz.v3.ExtAuthz": authorization,
		"stats.PluginConfig": statistics,
		"envoy.extensions.filters.http.grpc_stats.v3.FilterConfig": statistics,
	}
	networkAnchors = map[string]class{
		"envoy.tcp.metadataexchange.config.MetadataExchange": alwaysFirst,
		networkRBAC: authorization,
		"envoy.extensions.filters.network.ext_authz.v3.ExtAuthz": authorization,
		"stats.PluginConfig": statistics,
	}
)

const (
	httpRBAC    = "envoy.extensions.filters.http.rbac.v3.RBAC"
	networkRBAC = "envoy.extensions.filters.network.rbac.v3.RBAC"
)

// PlaceholderPrefix begins the names of the filters by which operators say outright
// where the plugins of a phase go: stile.dev/phase/AUTHN and so on.
const PlaceholderPrefix = "stile.dev/phase/"

// phases are all phases in the order in which data meets them.
var phases = []v1alpha1.PluginPhase{
	v1alpha1.PhaseAuthN, v1alpha1.PhaseAuthZ, v1alpha1.PhaseStats, v1alpha1.PhaseUnspecified, v1alpha1.PhaseRouter,
}

// rank returns a phase's place in phases; an unset phase is PhaseUnspecified.
func rank(p v1alpha1.PluginPhase) int {
	if i := slices.Index(phases, p); i >= 0 {
		return i
	}
	return slices.Index(phases, v1alpha1.PhaseUnspecified)
}

// anchors classify the filters of one level, HTTP or network.
type anchors struct {
	known map[string]class
	extra Anchors
	rbac  string
}

// bareType returns a type URL without what stands before its last slash.
func bareType(url string) string { return url[strings.LastIndexByte(url, '/')+1:] }

func (a anchors) classOf(f Filter) class {
	if isPlaceholder(f) || strings.HasPrefix(f.Name, v1alpha1.ECDSNamePrefix) {
		return noAnchor
	}
	found := noAnchor
	for _, url := range f.TypeURLs {
		t := bareType(url)
		c := a.known[t]
		for _, e := range []struct {
			class class
			urls  []string
		}{{alwaysFirst, a.extra.First}, {authentication, a.extra.AuthN}, {authorization, a.extra.AuthZ}, {statistics, a.extra.Stats}} {
			if slices.ContainsFunc(e.urls, func(u string) bool { return bareType(u) == t }) {
				c = e.class
			}
		}
		// Of several types that a filter may turn out to be, the earliest anchor counts.
		if c != noAnchor && (found == noAnchor || c < found) {
			found = c
		}
	}
	return found
}

func isPlaceholder(f Filter) bool { return strings.HasPrefix(f.Name, PlaceholderPrefix) }

// places are the indexes, in one list of filters, at which the phases' plugins go in.
type places struct {
	at [5]int // by rank
	// terminal is the index of the last filter that is no placeholder; -1 in an empty list.
	terminal int
	// drop are the indexes of all placeholders.
	drop     []int
	problems []placeProblem
}

type placeProblem struct{ severity, reason, message string }

// find applies the rule: total, and each phase's place is at or after the one before it,
// unless a placeholder says otherwise.
func (a anchors) find(filters []Filter) places {
	p := places{terminal: -1}
	for i, f := range filters {
		if isPlaceholder(f) {
			p.drop = append(p.drop, i)
		} else {
			p.terminal = i
		}
	}
	if p.terminal < 0 {
		return p
	}
	classes := make([]class, p.terminal)
	for i := range classes {
		classes[i] = a.classOf(filters[i])
	}
	const unset = -1
	first := func(c class, from int) int {
		if i := slices.Index(classes[from:], c); i >= 0 {
			return from + i
		}
		return unset
	}
	last := func(c class) int {
		for i := len(classes) - 1; i >= 0; i-- {
			if classes[i] == c {
				return i
			}
		}
		return unset
	}
	// after is the place right after a filter, and after filters that must come first.
	after := func(i int) int {
		for i++; i < len(classes) && classes[i] == alwaysFirst; i++ {
		}
		return i
	}
	authN, lastN := first(authentication, 0), last(authentication)
	authZ := first(authorization, lastN+1)
	if authZ == unset && lastN >= 0 {
		authZ = after(lastN)
	}
	lastA := max(lastN, last(authorization))
	stats := first(statistics, lastA+1)
	if stats == unset && lastA >= 0 {
		stats = after(lastA)
	}
	p.at = [5]int{authN, authZ, stats, p.terminal, p.terminal}
	a.contradictions(filters, classes, lastN, &p)
	p.placeholders(filters)
	// A phase without anchors takes the place of the next, wherever that was put.
	for i := len(p.at) - 2; i >= 0; i-- {
		if p.at[i] == unset {
			p.at[i] = p.at[i+1]
		}
	}
	return p
}

// contradictions warns of role-based authorization before authentication: it sees
// requests that nobody has authenticated. Other authorization there is an operator's
// own external check, and meant.
func (a anchors) contradictions(filters []Filter, classes []class, lastN int, p *places) {
	for i := range lastN {
		if classes[i] == authorization && slices.ContainsFunc(filters[i].TypeURLs, func(u string) bool { return bareType(u) == a.rbac }) {
			p.problems = append(p.problems, placeProblem{v1alpha1.SeverityWarning, ProblemAnchorOrder,
				"filter " + filters[i].Name + " authorizes before filter " + filters[lastN].Name + " authenticates: AUTHZ plugins run after the latter"})
			return
		}
	}
}

// placeholders overrides the places of the phases that have one. The first of a phase counts.
func (p *places) placeholders(filters []Filter) {
	seen := map[string]bool{}
	for _, i := range p.drop {
		name := strings.TrimPrefix(filters[i].Name, PlaceholderPrefix)
		r := slices.Index(phases, v1alpha1.PluginPhase(name))
		switch {
		case r < 0:
			p.problems = append(p.problems, placeProblem{v1alpha1.SeverityError, ProblemPlaceholder,
				"filter " + filters[i].Name + " names no phase: write one of " + phaseNames()})
		case seen[name]:
			p.problems = append(p.problems, placeProblem{v1alpha1.SeverityError, ProblemPlaceholder,
				"filter " + filters[i].Name + " is there twice: the first counts, remove the other"})
		case i > p.terminal:
			seen[name] = true
			p.problems = append(p.problems, placeProblem{v1alpha1.SeverityError, ProblemPlaceholder,
				"filter " + filters[i].Name + " is behind the last filter, where nothing arrives: move it before " + filters[p.terminal].Name})
		default:
			seen[name] = true
			p.at[r] = i
		}
	}
}

func phaseNames() string {
	names := make([]string, len(phases))
	for i, p := range phases {
		names[i] = PlaceholderPrefix + string(p)
	}
	return strings.Join(names, ", ")
}

// next returns the name of the operator's filter that stands at or after index at.
func next(filters []Filter, at int) string {
	for ; at < len(filters); at++ {
		if !isPlaceholder(filters[at]) {
			return filters[at].Name
		}
	}
	return ""
}
