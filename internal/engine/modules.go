package engine

import (
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"io"
	"maps"
	"sync"

	"github.com/stileproject/stile/internal/access"
	"github.com/stileproject/stile/internal/content"
	"github.com/stileproject/stile/internal/oci"
	"github.com/stileproject/stile/internal/plugin"
	"github.com/stileproject/stile/internal/xds"
)

// modules is what the module server needs of package content.
type modules interface {
	Open(access.Proof) (io.ReadSeekCloser, error)
	OpenURL(content.URLRequest) (io.ReadSeekCloser, error)
}

// ErrNoModule says that a module URL opens nothing: it never existed, or the right
// behind it has ended. Callers cannot tell which.
var ErrNoModule = errors.New("no such module")

// ModuleInfo describes an open module.
type ModuleInfo struct {
	Plugin plugin.Key
	SHA256 string // 64 lower-case hexadecimal digits
	Size   int64  // in bytes
	// Stands reports whether the right to the module still stands; it may be called at
	// any time from anywhere, and costs a lock and an atomic load.
	Stands func() bool
}

// tokens are the module URLs that are open, and how often each module was downloaded.
// The zero value is ready for use.
type tokens struct {
	mu        sync.RWMutex
	open      map[string]opening
	announced map[string]bool // what other replicas have opened, and this one has not yet
	changed   chan struct{}   // closed when one is opened or announced; nil: nobody waits
	downloads map[download]int64
}

// opening is what a token opens.
type opening struct {
	plugin plugin.Key
	*version
}

// download is what downloads are counted by.
type download struct {
	plugin plugin.Key
	sha256 string
}

// set opens a token, or gives it another version; it returns what it opened before.
func (t *tokens) set(token string, k plugin.Key, v *version) (before opening) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.open == nil {
		t.open = map[string]opening{}
	}
	before = t.open[token]
	t.open[token] = opening{k, v}
	t.wake()
	return before
}

// announce says which tokens are to be opened soon.
func (t *tokens) announce(tokens map[string]bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.announced = tokens
	t.wake()
}

func (t *tokens) wake() {
	if t.changed != nil {
		close(t.changed)
		t.changed = nil
	}
}

// watch says what is known of a token, and when to ask again.
func (t *tokens) watch(token string) (v opening, open, announced bool, changed <-chan struct{}) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.changed == nil {
		t.changed = make(chan struct{})
	}
	v, open = t.open[token]
	return v, open, t.announced[token], t.changed
}

func (t *tokens) count(d download, by int64) int64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.downloads == nil {
		t.downloads = map[download]int64{}
	}
	n := t.downloads[d] + by
	if by != 0 {
		t.downloads[d] = n
	}
	return n
}

// forget drops the counts of a plugin that is gone.
func (t *tokens) forget(k plugin.Key) {
	t.mu.Lock()
	defer t.mu.Unlock()
	maps.DeleteFunc(t.downloads, func(d download, _ int64) bool { return d.plugin == k })
}

// close closes a token; it returns what it opened.
func (t *tokens) close(token string) (before opening) {
	t.mu.Lock()
	defer t.mu.Unlock()
	before = t.open[token]
	delete(t.open, token)
	return before
}

func (t *tokens) get(token string) (opening, bool) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	o, ok := t.open[token]
	return o, ok
}

// how says how a version travels: inline where it is small enough.
func how(v *version) xds.Delivery {
	switch {
	case v.path != "":
		return xds.Delivery{Mode: xds.File, Path: v.path}
	case v.module.Inline != nil:
		return xds.Delivery{Mode: xds.Inline, Bytes: v.module.Inline, SHA256: v.module.SHA256, Size: v.module.Size}
	default:
		return xds.Delivery{Mode: xds.Remote, SHA256: v.module.SHA256, Size: v.module.Size}
	}
}

// module is the delivery of what the plugin runs, with a URL if it needs one.
func (e *Engine) module(ps *pluginState) xds.Delivery {
	d := how(ps.good)
	ps.served = ps.epoch
	if d.Mode == xds.Remote {
		if next := e.token(ps, ps.epoch); next != ps.token {
			e.closeURL(ps)
			ps.token = next
		}
		e.openURL(ps)
		d.URL = e.moduleURL(ps.token)
	}
	return d
}

// openURL lets the URL of what the plugin runs be asked for.
func (e *Engine) openURL(ps *pluginState) {
	before := e.tokens.set(ps.token, ps.key, ps.good)
	if before.version != nil && before.proof == ps.good.proof {
		return
	}
	if before.version != nil {
		e.rooms.Gate.Closed(before.proof)
	}
	e.rooms.Gate.Opened(ps.good.proof)
}

// closeURL ends that.
func (e *Engine) closeURL(ps *pluginState) {
	if before := e.tokens.close(ps.token); before.version != nil {
		e.rooms.Gate.Closed(before.proof)
	}
	ps.token = ""
}

// kept is how what runs was last delivered: under the epoch before the right ended.
func (e *Engine) kept(ps *pluginState) *xds.Delivery {
	d := how(ps.good)
	if d.Mode == xds.Remote {
		d.URL = e.moduleURL(e.token(ps, ps.served))
	}
	return &d
}

func (e *Engine) moduleURL(token string) string { return e.cfg.ModulesURL + "/modules/" + token }

// token is the unguessable part of a module's URL, bound to plugin, digest and epoch.
func (e *Engine) token(ps *pluginState, epoch uint64) string {
	return e.tokenOf(ps.key, ps.good.module.SHA256, epoch)
}

func (e *Engine) tokenOf(k plugin.Key, sha256 string, epoch uint64) string {
	sum := e.cfg.URLs.Sum([]byte(k.Namespace), []byte(k.Name), []byte(sha256), binary.BigEndian.AppendUint64(nil, epoch))
	return hex.EncodeToString(sum[:])
}

// OpenModule opens the module behind a token of a module URL. It reads from disk and
// returns ErrNoModule for a token that opens nothing. Among several replicas, it waits a
// few seconds for one that another has given out and that is not at hand here yet. The
// caller closes the module.
func (e *Engine) OpenModule(ctx context.Context, token string) (io.ReadSeekCloser, ModuleInfo, error) {
	v, open := e.await(ctx, token)
	if !open {
		return nil, ModuleInfo{}, ErrNoModule
	}
	stands := func() bool {
		_, open := e.tokens.get(token)
		return open && (v.image.IsZero() || v.proof.Stands())
	}
	if !stands() {
		return nil, ModuleInfo{}, ErrNoModule
	}
	var f io.ReadSeekCloser
	var err error
	if v.image.IsZero() {
		f, err = e.rooms.Contents.OpenURL(v.source)
	} else {
		f, err = e.rooms.Contents.Open(v.proof)
	}
	if err != nil {
		return nil, ModuleInfo{}, err
	}
	return f, ModuleInfo{Plugin: v.plugin, SHA256: v.module.SHA256, Size: v.module.Size, Stands: stands}, nil
}

// Downloaded counts one complete download of a plugin's module. It may be called at any
// time from anywhere.
func (e *Engine) Downloaded(k plugin.Key, sha256 string) { e.tokens.count(download{k, sha256}, 1) }

// Images returns the images that a plugin has asked for: the one it wants and the one
// that runs. It is false if there is no such plugin.
func (e *Engine) Images(k plugin.Key) ([]oci.Reference, bool) {
	for _, s := range *e.status.Load() {
		if s.Namespace == k.Namespace && s.Name == k.Name {
			return s.images, true
		}
	}
	return nil, false
}

// retain tells the contents which modules are referenced.
func (e *Engine) retain() {
	sums := make([]string, 0, len(e.order))
	for _, key := range e.order {
		if good := e.plugins[key].good; good != nil && good.module.SHA256 != "" {
			sums = append(sums, good.module.SHA256)
		}
	}
	e.rooms.Contents.Retain(sums)
}
