package access

import (
	"os"
	"strings"
	"sync"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
)

// TestMetricsAreDocumented: the names that dashboards are built on.
func TestMetricsAreDocumented(t *testing.T) {
	t.Parallel()
	doc, err := os.ReadFile("../../docs/proofs.md")
	if err != nil {
		t.Fatal(err)
	}
	registry := prometheus.NewRegistry()
	New(newWorld(), Config{Registerer: registry})
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	if len(families) < 10 {
		t.Errorf("%d metrics", len(families))
	}
	for _, f := range families {
		name := "`" + f.GetName()
		if labels := f.GetMetric()[0].GetLabel(); len(labels) > 0 {
			name += "{" + labels[0].GetName() + "}"
		}
		if !strings.Contains(string(doc), name+"`") {
			t.Errorf("docs/proofs.md does not name %s`", name)
		}
	}
}

// TestPlainYesIsReadWhole: who reads while it is replaced gets one or the other, or none.
func TestPlainYesIsReadWhole(t *testing.T) {
	t.Parallel()
	var p plainYes
	stop := make(chan struct{})
	var readers sync.WaitGroup
	for range 4 {
		readers.Go(func() {
			for {
				checked, next, candidate, asked, ok := p.load()
				if ok && (next != checked+1 || int64(candidate) != checked%7 || asked != candidate) {
					t.Errorf("read %d %d %d %d", checked, next, candidate, asked)
					return
				}
				select {
				case <-stop:
					return
				default:
				}
			}
		})
	}
	for i := range int64(100_000) {
		p.clear()
		p.set(&answer{checked: i, next: i + 1, candidate: uint8(i % 7), asked: uint8(i % 7)})
	}
	close(stop)
	readers.Wait()
	p.clear()
	if _, _, _, _, ok := p.load(); ok {
		t.Error("read what was taken back")
	}
}
