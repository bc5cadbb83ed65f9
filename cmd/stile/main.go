// Command stile proves who may read an image, keeps the proofs and the content, and
// gives Wasm plugins to proxies for those who may have them.
package main

import (
	"os"

	"github.com/stileproject/stile/internal/cli"
	"github.com/stileproject/stile/internal/preflight"
)

func main() {
	preflight.Child() // in the process that tries a module, it does not return
	os.Exit(cli.Main(os.Args[1:], os.Stdin, os.Stdout, os.Stderr, os.Environ()))
}
