package access

import (
	"io"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// The defaults of Config.
const (
	DefaultRecheck             = time.Hour
	DefaultForget              = 24 * time.Hour
	DefaultGrace               = 24 * time.Hour
	DefaultGraceWhileAnswering = time.Hour
	DefaultTimeout             = 30 * time.Second
	DefaultAttempts            = 3
	DefaultDeniedFirst         = 15 * time.Second
	DefaultDeniedMax           = 5 * time.Minute
	DefaultConfirmAfter        = 5 * time.Second
	DefaultUnauthorizedFirst   = time.Minute
	DefaultUnauthorizedMax     = 30 * time.Minute
	DefaultMaxProofs           = 100_000
	DefaultMaxPerNamespace     = 2_000
	DefaultMaxInFlight         = 256 // over all registries
	DefaultPerRegistry         = 8   // for one registry
	DefaultBudget              = 50  // questions a second, for one namespace at one registry
)

// Config is how a Gate behaves. The zero value of every field is its default.
type Config struct {
	// Recheck is the age at which a yes is asked again, ± 10 %. 0 = 1 h.
	Recheck time.Duration
	// Forget is how long an entry that nobody holds or uses is kept. 0 = 24 h.
	Forget time.Duration
	// Grace is how long after its last real answer a yes lives while its registry
	// answers nobody. 0 = 24 h.
	Grace time.Duration
	// GraceWhileAnswering is the same once the registry has answered anyone since the
	// yes could first not be renewed. 0 = 1 h.
	GraceWhileAnswering time.Duration
	// Timeout bounds one question to a registry. 0 = 30 s.
	Timeout time.Duration
	// Attempts is how often a question without an answer is asked before it counts,
	// 1 s after the first, doubling, ± 20 %. 0 = 3.
	Attempts int
	// DeniedFirst and DeniedMax are after how long a no, or no answer, is asked again:
	// doubling from the first to the last. 0 = 15 s and 5 min.
	DeniedFirst, DeniedMax time.Duration
	// ConfirmAfter is the least time after which a refusal that would end a yes is asked
	// again; it may be up to six times that. 0 = 5 s.
	ConfirmAfter time.Duration
	// UnauthorizedFirst and UnauthorizedMax are after how long an account that the
	// registry itself refused (401) is tried again, for all its images at once. 0 = 1
	// min and 30 min.
	UnauthorizedFirst, UnauthorizedMax time.Duration
	// MaxProofs and MaxPerNamespace cap the entries. 0 = 100,000 and 2,000.
	MaxProofs, MaxPerNamespace int
	// MaxInFlight bounds the questions under way over all registries. 0 = 256.
	MaxInFlight int
	// Budget is how many questions a second one namespace may cost one registry, with
	// bursts of ten seconds' worth. 0 = 50.
	Budget int
	// Registries are the hosts that have settings of their own, by host.
	Registries map[string]RegistryConfig
	// Log receives what is odd; nil = nothing is logged.
	Log *slog.Logger
	// Registerer receives the metrics; nil = none.
	Registerer prometheus.Registerer
	// Archive keeps proofs over a restart; nil = they are not kept. The Gate writes it
	// while it runs; whoever opened it closes it after Run.
	Archive *Archive
	// Audit receives JSON lines, see AuditEvent, whole lines at a time; nil = none. It is
	// written to by one goroutine, which nothing waits for.
	Audit io.Writer
}

// RegistryConfig is what one registry has of its own.
type RegistryConfig struct {
	Grace       time.Duration // instead of Config.Grace; 0 = that
	MaxInFlight int           // 0 = 8
}

func (c Config) withDefaults() Config {
	duration := func(d *time.Duration, fallback time.Duration) {
		if *d <= 0 {
			*d = fallback
		}
	}
	number := func(n *int, fallback int) {
		if *n <= 0 {
			*n = fallback
		}
	}
	duration(&c.Recheck, DefaultRecheck)
	duration(&c.Forget, DefaultForget)
	duration(&c.Grace, DefaultGrace)
	duration(&c.GraceWhileAnswering, DefaultGraceWhileAnswering)
	duration(&c.Timeout, DefaultTimeout)
	number(&c.Attempts, DefaultAttempts)
	duration(&c.DeniedFirst, DefaultDeniedFirst)
	duration(&c.DeniedMax, DefaultDeniedMax)
	duration(&c.ConfirmAfter, DefaultConfirmAfter)
	duration(&c.UnauthorizedFirst, DefaultUnauthorizedFirst)
	duration(&c.UnauthorizedMax, DefaultUnauthorizedMax)
	number(&c.MaxProofs, DefaultMaxProofs)
	number(&c.MaxPerNamespace, DefaultMaxPerNamespace)
	number(&c.MaxInFlight, DefaultMaxInFlight)
	number(&c.Budget, DefaultBudget)
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return c
}
