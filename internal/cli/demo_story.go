package cli

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/stileproject/stile/internal/engine"
)

// story runs the steps in order. Those that others build on end the story when they fail.
func (d *demo) story(ctx context.Context, w *demoWorld) error {
	d.report = DemoReport{APIVersion: apiVersion, Kind: "DemoReport", Passed: true, Proxy: w.proxyName()}
	steps := []struct {
		name  string
		run   func(context.Context) (string, error)
		basis bool // the later steps need it
	}{
		{"two modules in two packagings are in a registry that asks for passwords", w.stepRegistry, true},
		{"stile serves the folder", w.stepServe, true},
		{"a proxy for each tenant has its listener", w.stepProxies, true},
		{"team-a's request goes through its plugins in phase order", w.stepOrder, false},
		{"team-b gets 503: its secret may not read the image", w.stepDenied, false},
		{"a second plugin on the same image costs no request", w.stepShared, false},
		{"the registry goes down and team-a's proxy keeps working", w.stepOutage, false},
		{"team-a's right is taken away: what runs keeps running, nobody new gets it", w.stepRevoked, false},
		{"the right comes back and all is well without anybody poking", w.stepRestored, false},
	}
	for i, step := range steps {
		d.say("")
		d.say("%d. %s", i+1, step.name)
		detail, err := step.run(ctx)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		result := DemoStep{Name: step.name, Passed: err == nil, Detail: detail}
		mark := "ok"
		if err != nil {
			result.Detail, mark, d.report.Passed = strings.TrimSpace(detail+" "+err.Error()), "FAILED", false
		}
		for line := range strings.SplitSeq(result.Detail, "\n") {
			d.say("   %s", line)
		}
		d.say("   %s", mark)
		d.report.Steps = append(d.report.Steps, result)
		if err != nil && step.basis {
			return nil
		}
	}
	return nil
}

func (w *demoWorld) stepRegistry(ctx context.Context) (string, error) {
	lines, err := w.push(ctx)
	return strings.Join(lines, "\n"), err
}

func (w *demoWorld) stepServe(ctx context.Context) (string, error) {
	if err := w.serve(ctx); err != nil {
		return "", err
	}
	return "folder    " + w.folder + "\n" + strings.Join(w.files, "\n"), nil
}

func (w *demoWorld) stepProxies(ctx context.Context) (string, error) {
	var lines []string
	for _, tenant := range []string{"team-a", "team-b"} {
		p, err := w.startProxy(ctx, tenant+"-gw-0", tenant)
		if err != nil {
			return strings.Join(lines, "\n"), err
		}
		w.proxies[tenant] = p
		lines = append(lines, fmt.Sprintf("%-9s %s at http://%s", tenant, w.proxyName(), p.address))
	}
	return strings.Join(lines, "\n"), nil
}

// demoTrail is the request header in which each plugin of the demo writes its name.
const demoTrail = "X-Stile-Trail"

func (w *demoWorld) stepOrder(ctx context.Context) (string, error) {
	want := "badge,toll"
	got, err := w.waitFor(ctx, "team-a", want)
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("chain     %s\nbefore    %s\nafter     %s", w.chain("team-a"), showHeaders(w.sent), showHeaders(got.seen)), nil
}

func (w *demoWorld) stepDenied(ctx context.Context) (string, error) {
	got, err := w.get(ctx, "team-b")
	if err != nil {
		return "", err
	}
	status, err := w.until(ctx, "team-b/badge", func(s engine.PluginStatus) error {
		return wantCondition(s, "ResolvedRefs", "False", "Unauthorized")
	})
	if err != nil {
		return "", err
	}
	if got.code != http.StatusServiceUnavailable {
		return "", fmt.Errorf("team-b's request: want 503, have %d: its secret must not open team-a's image", got.code)
	}
	return "answer    503\nstatus    " + showResolved(status), nil
}

func (w *demoWorld) stepShared(ctx context.Context) (string, error) {
	before := w.badgeDownloads()
	if err := w.addSecondPlugin(); err != nil {
		return "", err
	}
	got, err := w.waitFor(ctx, "team-a", "badge,toll,again")
	if err != nil {
		return "", err
	}
	if extra := w.badgeDownloads() - before; extra > 0 {
		return "", fmt.Errorf("the second plugin cost %d requests to the registry", extra)
	}
	return "after     " + showHeaders(got.seen) + "\nrequests  0", nil
}

func (w *demoWorld) stepOutage(ctx context.Context) (string, error) {
	w.registry.Down()
	defer w.registry.Up()
	// Wait until a re-check has found nobody, asking the proxy all the while.
	served := 0
	status, err := w.until(ctx, "team-a/badge", func(s engine.PluginStatus) error {
		got, err := w.get(ctx, "team-a")
		if err != nil || got.code != http.StatusOK {
			return hopeless{fmt.Errorf("team-a's request during the outage: %d, %w", got.code, err)}
		}
		served++
		return w.stale(ctx)
	})
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("requests  %d, all answered 200\nstatus    %s", served, showResolved(status)), nil
}

func (w *demoWorld) stepRevoked(ctx context.Context) (string, error) {
	w.revoke("team-a")
	began := time.Now()
	status, err := w.until(ctx, "team-a/badge", func(s engine.PluginStatus) error {
		return wantCondition(s, "ResolvedRefs", "False", "Unauthorized")
	})
	if err != nil {
		return "", err
	}
	took := time.Since(began).Round(100 * time.Millisecond)
	running, err := w.get(ctx, "team-a")
	if err != nil {
		return "", err
	}
	if running.code != http.StatusOK {
		return "", fmt.Errorf("the proxy that ran: want 200, have %d", running.code)
	}
	late, err := w.startProxy(ctx, "team-a-gw-1", "team-a")
	if err != nil {
		return "", err
	}
	w.proxies["team-a late"] = late
	refused, err := w.get(ctx, "team-a late")
	if err != nil {
		return "", err
	}
	if refused.code != http.StatusServiceUnavailable {
		return "", fmt.Errorf("the proxy that connected after: want 503, have %d", refused.code)
	}
	return fmt.Sprintf("status    %s, after %s\nruns      200\nnew       503", showResolved(status), took), nil
}

func (w *demoWorld) stepRestored(ctx context.Context) (string, error) {
	w.restore("team-a")
	status, err := w.until(ctx, "team-a/badge", func(s engine.PluginStatus) error { return wantCondition(s, "ResolvedRefs", "True", "Resolved") })
	if err != nil {
		return "", err
	}
	if _, err := w.waitFor(ctx, "team-a late", "badge,toll,again"); err != nil {
		return "", err
	}
	if _, err := w.waitFor(ctx, "team-a", "badge,toll,again"); err != nil {
		return "", err
	}
	return "status    " + showResolved(status) + "\nboth proxies of team-a answer 200", nil
}

// hopeless is an error that waiting cannot mend.
type hopeless struct{ error }

// wantCondition compares a condition; an empty reason is any.
func wantCondition(s engine.PluginStatus, kind, status, reason string) error {
	for _, c := range s.Conditions {
		if c.Type != kind {
			continue
		}
		if c.Status != status || reason != "" && c.Reason != reason {
			return fmt.Errorf("%s/%s: %s is %s, %s (%s); want %s %s", s.Namespace, s.Name, kind, c.Status, c.Reason, c.Message, status, reason)
		}
		return nil
	}
	return fmt.Errorf("%s/%s has no condition %s", s.Namespace, s.Name, kind)
}

// showResolved is one line about whether a plugin's image may be read.
func showResolved(s engine.PluginStatus) string {
	const kind = "ResolvedRefs"
	for _, c := range s.Conditions {
		if c.Type == kind {
			return fmt.Sprintf("%s/%s: %s=%s, %s: %s", s.Namespace, s.Name, kind, c.Status, c.Reason, c.Message)
		}
	}
	return kind + " is not known"
}

// showHeaders spells those of the demo, sorted.
func showHeaders(h http.Header) string {
	var lines []string
	for name, values := range h {
		if strings.HasPrefix(name, "X-Stile-") {
			lines = append(lines, strings.ToLower(name)+": "+strings.Join(values, ", "))
		}
	}
	slices.Sort(lines)
	if len(lines) == 0 {
		return "no x-stile- header"
	}
	return strings.Join(lines, "; ")
}
