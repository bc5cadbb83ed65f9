package alerts

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/rulefmt"
	"github.com/prometheus/prometheus/promql"
	"github.com/prometheus/prometheus/promql/parser"
	"github.com/prometheus/prometheus/promql/promqltest"
)

var chart = filepath.Join("..", "..", "charts", "stile")

func read(t *testing.T, path ...string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(path...))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// rules are the alerts as the chart gives them with maxWait at its default of 5 minutes.
func rules(t *testing.T) []rulefmt.Rule {
	t.Helper()
	text := strings.NewReplacer("RUNBOOKS", "https://runbooks.example/operations.md", "HELD", "360").Replace(read(t, chart, "files", "alerts.yaml"))
	groups, faults := rulefmt.Parse([]byte(text), false, model.UTF8Validation, parser.NewParser(parser.Options{}), slog.New(slog.DiscardHandler))
	for _, f := range faults {
		t.Error(f)
	}
	if t.Failed() {
		t.FailNow()
	}
	var all []rulefmt.Rule
	for _, g := range groups.Groups {
		all = append(all, g.Rules...)
	}
	return all
}

// selectors fails unless every metric and label of an expression is one that the code declares.
func selectors(t *testing.T, all map[string]metric, what, expression string) {
	t.Helper()
	parsed, err := parser.NewParser(parser.Options{}).ParseExpr(expression)
	if err != nil {
		t.Errorf("%s: %v", what, err)
		return
	}
	parser.Inspect(parsed, func(n parser.Node, _ []parser.Node) error {
		switch n := n.(type) {
		case *parser.VectorSelector:
			var labels []string
			for _, m := range n.LabelMatchers {
				if m.Name != "__name__" {
					labels = append(labels, m.Name)
				}
			}
			if fault := knows(all, n.Name, labels); fault != "" {
				t.Errorf("%s: %s", what, fault)
			}
		case *parser.AggregateExpr:
			parser.Inspect(n.Expr, func(inner parser.Node, _ []parser.Node) error {
				if v, ok := inner.(*parser.VectorSelector); ok {
					if fault := knows(all, v.Name, n.Grouping); fault != "" {
						t.Errorf("%s: by %v: %s", what, n.Grouping, fault)
					}
				}
				return nil
			})
		}
		return nil
	})
}

func TestAlertsAskForMetricsThatThereAre(t *testing.T) {
	t.Parallel()
	all := declared(t)
	for _, r := range rules(t) {
		selectors(t, all, r.Alert, r.Expr)
	}
}

func TestDashboardAsksForMetricsThatThereAre(t *testing.T) {
	t.Parallel()
	all := declared(t)
	var dashboard struct {
		Panels []struct {
			Title, Type string
			Targets     []struct{ Expr string }
		}
		Templating struct {
			List []struct{ Name, Query string }
		}
	}
	if err := json.Unmarshal([]byte(read(t, chart, "dashboards", "stile.json")), &dashboard); err != nil {
		t.Fatal(err)
	}
	shown := 0
	for _, p := range dashboard.Panels {
		for _, target := range p.Targets {
			shown++
			selectors(t, all, p.Title, strings.ReplaceAll(target.Expr, "$namespace", "stile-system"))
		}
		if p.Type != "row" && len(p.Targets) == 0 {
			t.Errorf("%s: shows nothing", p.Title)
		}
	}
	if shown < 20 {
		t.Errorf("only %d queries", shown)
	}
	for _, v := range dashboard.Templating.List {
		if name, ok := strings.CutPrefix(v.Query, "label_values("); ok {
			if fault := knows(all, name[:strings.IndexByte(name, ',')], nil); fault != "" {
				t.Errorf("variable %s: %s", v.Name, fault)
			}
		}
	}
}

// Every alert has a section in docs/operations.md, at the anchor that its runbook_url names, and no section is without its alert.
func TestEveryAlertHasItsRunbook(t *testing.T) {
	t.Parallel()
	page := read(t, "..", "..", "docs", "operations.md")
	var sections []string
	for _, m := range regexp.MustCompile(`(?m)^### (Stile\w+)$`).FindAllStringSubmatch(page, -1) {
		sections = append(sections, m[1])
	}
	var alerts []string
	for _, r := range rules(t) {
		alerts = append(alerts, r.Alert)
		if want := "https://runbooks.example/operations.md#" + strings.ToLower(r.Alert); r.Annotations["runbook_url"] != want {
			t.Errorf("%s: runbook_url is %s, want %s", r.Alert, r.Annotations["runbook_url"], want)
		}
		if r.Annotations["summary"] == "" || r.Annotations["description"] == "" || r.Labels["severity"] == "" {
			t.Errorf("%s: wants a summary, a description and a severity", r.Alert)
		}
	}
	slices.Sort(sections)
	slices.Sort(alerts)
	if !slices.Equal(sections, alerts) {
		t.Errorf("sections of docs/operations.md: %v\nalerts: %v", sections, alerts)
	}
}

// Each alert fires on what it is for, and not on a service that is well.
func TestAlertsFire(t *testing.T) {
	t.Parallel()
	const well = `
stile_build_info{pod="a",version="v1"} 1x60
stile_leader{pod="a"} 1x60
stile_leader{pod="b"} 0x60
stile_plugins_resolved{pod="a",reason="Unauthorized"} 0x60
stile_plugins_resolved{pod="a",reason="RegistryUnreachable"} 0x60
stile_plugins_resolved{pod="a",reason="StoreFull"} 0x60
stile_access_proofs{pod="a",state="Stale"} 0x60
stile_xds_nacks_total{pod="a",type="extension"} 0x60
stile_plugin_proxies{pod="a",state="matched"} 12x60
stile_plugin_proxies{pod="a",state="accepted"} 12x60
stile_plugins{pod="a",programmed="ServingLastGood"} 0x60
stile_store_bytes{pod="a"} 100x60
stile_store_max_bytes{pod="a"} 1000x60
stile_store_corrupt_total{pod="a"} 0x60
stile_access_refusals_total{pod="a"} 0x60
stile_kube_watch_failures_total{pod="a",resource="wasmplugins"} 0x60
stile_status_writes_total{pod="a",result="failed"} 0x60
stile_status_writes_total{pod="a",result="written"} 0+10x60
stile_placement_oldest_held_seconds{pod="a"} 250x60
stile_placement_patches_total{pod="a",result="refused"} 0x60
`
	ill := map[string]string{
		"StileAbsent":               `other 1x60`,
		"StileRegistryUnauthorized": `stile_plugins_resolved{pod="a",reason="PullSecretInvalid"} 2x60`,
		"StileRegistryUnreachable":  `stile_plugins_resolved{pod="a",reason="RegistryUnreachable"} 1x60`,
		"StileChecksStale":          `stile_access_proofs{pod="a",state="Stale"} 3x60`,
		"StileNacksRising":          `stile_xds_nacks_total{pod="a",type="extension"} 0+1x60`,
		"StileProxiesBehind":        "stile_plugin_proxies{pod=\"a\",state=\"matched\"} 12x60\nstile_plugin_proxies{pod=\"a\",state=\"accepted\"} 11x60",
		"StileServingLastGood":      `stile_plugins{pod="a",programmed="ServingLastGood"} 1x60`,
		"StileStoreNearLimit":       "stile_store_bytes{pod=\"a\"} 950x60\nstile_store_max_bytes{pod=\"a\"} 1000x60",
		"StileStoreFull":            `stile_plugins_resolved{pod="a",reason="StoreFull"} 1x60`,
		"StileStoreCorrupt":         `stile_store_corrupt_total{pod="a"} 0x40 1x20`,
		"StileTooManyProofs":        `stile_access_refusals_total{pod="a"} 0+1x60`,
		"StileWatchFailing":         `stile_kube_watch_failures_total{pod="a",resource="wasmplugins"} 0+1x60`,
		"StileNoLeader":             "stile_leader{pod=\"a\"} 0x60\nstile_leader{pod=\"b\"} 0x60",
		"StileStatusNotWritten":     `stile_status_writes_total{pod="a",result="failed"} 0+1x60`,
		"StilePodsHeldTooLong":      `stile_placement_oldest_held_seconds{pod="a"} 400x60`,
		"StilePodPatchesRefused":    `stile_placement_patches_total{pod="a",result="refused"} 0+1x60`,
	}
	for _, r := range rules(t) {
		t.Run(r.Alert, func(t *testing.T) {
			t.Parallel()
			if fires(t, well, r.Expr) {
				t.Error("fires on a service that is well")
			}
			series, ok := ill[r.Alert]
			if !ok {
				t.Fatal("no series here says when it is to fire")
			}
			if !fires(t, series, r.Expr) {
				t.Error("does not fire")
			}
		})
	}
}

// fires evaluates an expression after an hour of the given series, a sample a minute.
func fires(t *testing.T, series, expression string) bool {
	t.Helper()
	load := "load 1m\n"
	for line := range strings.Lines(strings.TrimSpace(series)) {
		load += "  " + strings.TrimSpace(line) + "\n"
	}
	storage := promqltest.LoadedStorage(t, load)
	defer func() { _ = storage.Close() }()
	engine := promql.NewEngine(promql.EngineOpts{MaxSamples: 1e6, Timeout: 10 * time.Second})
	defer func() { _ = engine.Close() }()
	query, err := engine.NewInstantQuery(context.Background(), storage, nil, expression, time.Unix(3600, 0))
	if err != nil {
		t.Fatal(err)
	}
	defer query.Close()
	got := query.Exec(context.Background())
	if got.Err != nil {
		t.Fatal(got.Err)
	}
	vector, err := got.Vector()
	if err != nil {
		t.Fatal(fmt.Errorf("%s: %w", expression, err))
	}
	return len(vector) > 0
}
