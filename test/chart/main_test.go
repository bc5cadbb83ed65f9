package chart

import (
	"os"
	"testing"

	"github.com/stileproject/stile/internal/kubetest"
)

// Helm keeps connections of its own: what leaks is its business.
func TestMain(m *testing.M) { os.Exit(kubetest.Main(m, kubetest.Options{NoCRD: true, MayLeak: true})) }
