package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/stileproject/stile/api/v1alpha1"
	"github.com/stileproject/stile/internal/access"
	"github.com/stileproject/stile/internal/engine"
	"github.com/stileproject/stile/internal/xds"
)

// statusReport is the JSON of "stile status": what the admin API answers, as it came.
type statusReport struct {
	APIVersion string            `json:"apiVersion"`
	Kind       string            `json:"kind"`
	Plugins    []json.RawMessage `json:"plugins"`
	Proofs     []json.RawMessage `json:"proofs"`
	Proxies    []json.RawMessage `json:"proxies"`
	Replicas   []replicaReport   `json:"replicas,omitempty"` // where a Kubernetes API was asked
}

func statusVerb(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "status [NAMESPACE/NAME]",
		Short: "What a running service does: plugins, proofs, proxies",
		Long: `Asks the admin address of a running service. With a name, only that plugin, the proofs that
it uses and the proxies that have it. Exits with 5 if there is no such plugin, and with 6 if
nobody answers.

With --context, --kubeconfig or -n, and always as "kubectl stile status", it asks a cluster: plugins
are read from their own status, proofs and proxies from every ready replica, through the API server
as "kubectl port-forward" does. What cannot be reached is said on stderr and left out.`,
		Example: `  stile status
  stile status team-a/auth -o json
  stile status --server 127.0.0.1:18002 --watch
  stile status --context staging -n team-a`,
		Args: arguments(0, 1, "one NAMESPACE/NAME"),
	}
	var server string
	var watch bool
	var timeout time.Duration
	cmd.Flags().StringVar(&server, "server", "", "admin address of the service, host:port (else admin.address of the configuration)")
	cmd.Flags().BoolVar(&watch, "watch", false, "print again whenever something changes, until Ctrl-C")
	cmd.Flags().DurationVar(&timeout, "timeout", 10*time.Second, "how long one answer may take")
	cluster := &inCluster{}
	cmd.Flags().StringVar(&cluster.api.Kubeconfig, "kubeconfig", "", "kubeconfig file (else the cluster that stile runs in, $KUBECONFIG, ~/.kube/config)")
	cmd.Flags().StringVar(&cluster.api.Context, "context", "", "context of the kubeconfig (else its current one)")
	cmd.Flags().StringVarP(&cluster.namespace, "namespace", "n", "", "plugins of this namespace alone, of a cluster")
	cmd.Flags().StringVar(&cluster.home, "service-namespace", "stile-system", "namespace of the service's own pods")
	out := outputFlag(cmd)
	in := configFileFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		name := ""
		if len(args) > 0 {
			name = args[0]
		}
		cluster.all = calledByKubectl() && server == ""
		if cluster.wanted() {
			if server != "" {
				return usagef("status: --server names one service, --context, --kubeconfig and -n a cluster: choose one")
			}
			if err := cluster.open(); err != nil {
				return err
			}
			return a.status(cmd.Context(), out, statusQuery{cluster: cluster, name: name, watch: watch, timeout: timeout})
		}
		if server == "" {
			loaded, err := a.loadConfig(in)
			if err != nil {
				return err
			}
			server = loaded.Admin.Address
		}
		if _, _, err := net.SplitHostPort(server); err != nil {
			return usagef("status: --server: want host:port, have %q", server)
		}
		return a.status(cmd.Context(), out, statusQuery{server: server, name: name, watch: watch, timeout: timeout})
	}
	return cmd
}

type statusQuery struct {
	server, name string
	cluster      *inCluster // nil: server is asked
	watch        bool
	timeout      time.Duration
}

// statusEvery is how often --watch asks.
const statusEvery = time.Second

func (a *app) status(ctx context.Context, out *output, q statusQuery) error {
	last, lost := "", ""
	for {
		s, err := q.ask(ctx)
		switch {
		case err != nil && (last == "" || interruptedBy(ctx) != nil):
			return err
		case err != nil: // it was there, and may come back: a restart is a change to watch, too
			if lost != err.Error() {
				lost = err.Error()
				a.note("%s", lost)
			}
			if err := wait(ctx); err != nil {
				return err
			}
			continue
		}
		lost = ""
		if last == "" {
			a.notAsked(s.report.Replicas)
		}
		var text strings.Builder
		if err := out.print(&text, s.answer()); err != nil {
			return err
		}
		if text.String() != last {
			last = text.String()
			if _, err := io.WriteString(a.stdout, last); err != nil {
				return err
			}
		}
		if !q.watch {
			return nil
		}
		if err := wait(ctx); err != nil {
			return err
		}
	}
}

func wait(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(statusEvery):
		return nil
	}
}

// statusAnswers are the three lists, raw and read.
type statusAnswers struct {
	report  statusReport
	plugins []engine.PluginStatus
	proofs  []proofItem
	proxies []xds.Proxy
}

// proofItem is one proof as the API writes it.
type proofItem struct {
	Image      string     `json:"image"`
	Credential string     `json:"credential"`
	State      string     `json:"state"`
	Reason     string     `json:"reason"`
	NextCheck  *time.Time `json:"nextCheck"`
	StaleSince *time.Time `json:"staleSince"`
	Users      []string   `json:"users"`
}

// ask reads the three lists and keeps what concerns the plugin that was named.
func (q statusQuery) ask(ctx context.Context) (*statusAnswers, error) {
	if q.cluster != nil {
		return q.cluster.ask(ctx, q)
	}
	s := &statusAnswers{report: statusReport{APIVersion: apiVersion, Kind: "Status"}}
	name := func(p engine.PluginStatus) string { return p.Namespace + "/" + p.Name }
	err := errors.Join(
		fetchList(ctx, q, "plugins", &s.report.Plugins, &s.plugins, func(p engine.PluginStatus) bool { return q.name == "" || name(p) == q.name }),
		fetchList(ctx, q, "proofs", &s.report.Proofs, &s.proofs, func(p proofItem) bool { return q.name == "" || slices.Contains(p.Users, q.name) }),
		fetchList(ctx, q, "proxies", &s.report.Proxies, &s.proxies, func(p xds.Proxy) bool { return q.name == "" || has(p, q.name) }),
	)
	switch {
	case err != nil && interruptedBy(ctx) != nil:
		return nil, context.Cause(ctx)
	case err != nil:
		return nil, fail(Unavailable, fmt.Errorf("status: %w", err), "start the service, or name its admin address with --server")
	case q.name != "" && len(s.plugins) == 0:
		return nil, fail(NotFound, fmt.Errorf("status: the service knows no plugin %s", q.name), `"stile status -o name" lists those it knows`)
	}
	return s, nil
}

// has reports whether a proxy has the ECDS resource of a plugin namespace/name.
func has(p xds.Proxy, plugin string) bool {
	resource := v1alpha1.ECDSNamePrefix + strings.Replace(plugin, "/", ".", 1)
	return slices.ContainsFunc(p.Resources, func(r xds.ProxyResource) bool { return r.Name == resource })
}

// maxStatus bounds one answer of the admin API.
const maxStatus = 256 << 20

// fetchList reads one list and keeps the items that fit, as they came and read.
func fetchList[T any](ctx context.Context, q statusQuery, what string, raw *[]json.RawMessage, items *[]T, fits func(T) bool) error {
	ctx, cancel := context.WithTimeout(ctx, q.timeout)
	defer cancel()
	*raw = []json.RawMessage{}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+q.server+"/api/v1/"+what, nil)
	if err != nil {
		return err
	}
	transport := &http.Transport{DisableKeepAlives: true}
	response, err := (&http.Client{Transport: transport}).Do(request)
	if err != nil {
		return err
	}
	defer func() { _ = response.Body.Close() }()
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s answers %s", what, q.server, response.Status)
	}
	var list struct{ Items []json.RawMessage }
	if err := json.NewDecoder(io.LimitReader(response.Body, maxStatus)).Decode(&list); err != nil {
		return fmt.Errorf("%s: %s does not answer as stile does: %w", what, q.server, err)
	}
	for _, one := range list.Items {
		var item T
		if err := json.Unmarshal(one, &item); err != nil {
			return fmt.Errorf("%s: %s does not answer as stile does: %w", what, q.server, err)
		}
		if fits(item) {
			*raw, *items = append(*raw, one), append(*items, item)
		}
	}
	return nil
}

func (s *statusAnswers) answer() answer {
	var names []string
	for _, p := range s.plugins {
		names = append(names, p.Namespace+"/"+p.Name)
	}
	return answer{Value: s.report, Names: names, Table: s.table}
}

func (s *statusAnswers) table(w io.Writer, wide bool) {
	t := newTable(w, "PLUGIN", "ACCEPTED", "RESOLVED", "PROGRAMMED", "PROXIES", "DELIVERY", "DIGEST")
	for _, p := range s.plugins {
		cells := []string{p.Namespace + "/" + p.Name}
		for _, c := range p.Conditions {
			cells = append(cells, conditionCell(c, wide))
		}
		for len(cells) < 4 {
			cells = append(cells, "")
		}
		digest := p.Digest
		if !wide {
			digest = shortDigest(digest)
		}
		t.row(append(cells, fmt.Sprintf("%d/%d", p.Proxies.Accepted, p.Proxies.Matched), p.Delivery, digest)...)
	}
	t.end()
	s.why(w)
	_, _ = fmt.Fprintln(w)
	t = newTable(w, "PROOF", "CREDENTIAL", "STATE", "REASON", "USERS")
	for _, p := range s.proofs {
		state := p.State
		if p.StaleSince != nil && state == access.Allowed.String() {
			state += " (stale)"
		}
		image := p.Image
		if repository, digest, pinned := strings.Cut(image, "@"); pinned && !wide {
			image = repository + "@" + shortDigest(digest)
		}
		t.row(image, p.Credential, state, p.Reason, strings.Join(p.Users, ", "))
	}
	t.end()
	_, _ = fmt.Fprintln(w)
	t = newTable(w, "PROXY", "CLUSTER", "NAMESPACE", "RESOURCES", "REJECTED")
	for _, p := range s.proxies {
		rejected := 0
		for _, r := range p.Resources {
			if r.State == xds.Rejected {
				rejected++
			}
		}
		t.row(p.ID, p.Cluster, p.Namespace, fmt.Sprint(len(p.Resources)), fmt.Sprint(rejected))
		if p.Waiting {
			t.row("  is not answered yet: /readyz?verbose says why")
		}
		for _, r := range p.Resources {
			if wide {
				t.row("  "+r.Name, string(r.State), r.Message)
			}
		}
	}
	t.end()
}

// why says of each plugin that is not as it should be what its conditions say.
func (s *statusAnswers) why(w io.Writer) {
	for _, p := range s.plugins {
		for _, c := range p.Conditions {
			if (c.Status != "True" || c.Reason == v1alpha1.ReasonServingLastGood) && c.Message != "" {
				_, _ = fmt.Fprintln(w, printable(fmt.Sprintf("  %s/%s %s: %s", p.Namespace, p.Name, c.Type, c.Message)))
			}
		}
	}
}

// conditionCell is a condition's status and, where it is not plainly true, its reason.
func conditionCell(c engine.Condition, wide bool) string {
	if c.Status == "True" && c.Reason != v1alpha1.ReasonServingLastGood && !wide {
		return c.Status
	}
	return c.Status + " (" + c.Reason + ")"
}

// shortDigest is enough of a digest to tell it from others on a screen.
func shortDigest(d string) string {
	if hex, ok := strings.CutPrefix(d, "sha256:"); ok && len(hex) > 12 {
		return "sha256:" + hex[:12]
	}
	return d
}
