package modules_test

import (
	"errors"
	"os/exec"
	"testing"

	"github.com/stileproject/stile/modules"
)

// The committed modules are what their sources make; without wat2wasm nobody knows.
func TestModulesComeFromTheirSources(t *testing.T) {
	t.Parallel()
	out, err := exec.CommandContext(t.Context(), "./generate.sh", "--check").CombinedOutput()
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.ExitCode() == 3 {
		t.Skipf("%s", out)
	}
	if err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

func TestModulesAreSmallAndTheCallersOwn(t *testing.T) {
	t.Parallel()
	for name, module := range map[string]func() []byte{"badge": modules.Badge, "toll": modules.Toll} {
		b := module()
		if len(b) < 8 || string(b[:4]) != "\x00asm" || len(b) > 10<<10 {
			t.Errorf("%s: %d bytes", name, len(b))
		}
		b[0] = 'x'
		if module()[0] == 'x' {
			t.Errorf("%s: a caller changed it for all", name)
		}
	}
}
