package content

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"io"
	"net/url"
	"strings"
	"time"

	"github.com/stileproject/stile/internal/oci"
	"github.com/stileproject/stile/internal/secret"
	"github.com/stileproject/stile/internal/store"
	"github.com/stileproject/stile/internal/wasm"
)

// Names under which a URL delivers: what came last, and each thing that came.
const latest = "latest"

func pinned(sha256 string) string { return "sha256 " + sha256 }

// processKey hides URLs for the life of the process.
func processKey() secret.Key {
	var b [secret.Size]byte
	_, _ = rand.Read(b[:]) // never fails
	root, err := secret.NewRoot(b[:], nil)
	if err != nil {
		panic("content: a root key of the right size was refused: " + err.Error()) // cannot happen
	}
	return root.Key(secret.ForRows)
}

// urlSources returns how a URL is named in records: under the current key, and under
// older ones, for reading.
func (c *Contents) urlSources(u string) []string {
	keys := c.config.Keys
	if len(keys) == 0 {
		keys = []secret.Key{c.process}
	}
	sources := make([]string, len(keys))
	for i, k := range keys {
		sum := k.Sum([]byte("content url"), []byte(u))
		sources[i] = "url:" + hex.EncodeToString(sum[:])
	}
	return sources
}

// urlKey is under what the request's content is, or will be, recorded.
func (c *Contents) urlKey(r URLRequest) itemKey {
	name := latest
	if r.SHA256 != "" {
		name = pinned(r.SHA256)
	}
	sources := c.urlSources(r.URL)
	for _, s := range sources[1:] {
		if _, ok := c.store.Get(s, name); ok {
			if _, newer := c.store.Get(sources[0], name); !newer {
				return itemKey{s, name}
			}
		}
	}
	return itemKey{sources[0], name}
}

// itemOfURL returns the request's item. Called with mu held.
func (c *Contents) itemOfURL(r URLRequest) (*item, error) {
	u, err := url.Parse(r.URL)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" || u.User != nil {
		// The parser's own message quotes the URL.
		return nil, &Problem{Reason: ReasonSourceNotAllowed, Message: "the url is no http or https URL with a host and without userinfo"}
	}
	// Nobody has fetched in the future: such a wish would be fetched again for ever.
	if now := time.Now(); r.NotBefore.After(now) {
		r.NotBefore = now
	}
	it := c.item(c.urlKey(r))
	if it.url == nil {
		it.url = &r
		return it, nil
	}
	newer := it.url.NotBefore.Before(r.NotBefore)
	if !newer {
		r.NotBefore = it.url.NotBefore
	}
	if newer || it.url.Trust != r.Trust {
		if it.invalid() != nil {
			it.module = nil
		}
		it.problem, it.failures, it.due = nil, 0, time.Time{} // the wish changed: ask anew
	}
	it.url = &r
	return it, nil
}

// stale reports whether what was fetched at a time is older than the request wants.
// Records keep microseconds.
func (r *URLRequest) stale(fetched time.Time) bool {
	return r.SHA256 == "" && fetched.Before(r.NotBefore.Truncate(time.Microsecond))
}

// fetchURL has the URL deliver a module, which is then recorded as what came last and
// under its own sha256.
func (c *Contents) fetchURL(ctx context.Context, k itemKey, r URLRequest) (store.Record, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	start := time.Now()
	had, tag := c.had(k)
	body, tag, err := c.download(ctx, r, tag)
	if err != nil {
		return store.Record{}, err
	}
	if body == nil { // what came last is what would come now
		had.At = start
		if err := c.store.Put(had); err != nil {
			return store.Record{}, err
		}
		return had, nil
	}
	defer func() { _ = body.Close() }()
	limits := wasm.Limits{Module: c.config.MaxModule}
	return c.take(ctx, taking{
		blob: limited(body, limits.Most()), abandon: cancel, form: wasm.FormAny, limits: limits, namespace: r.Namespace, sha256: r.SHA256,
		record: store.Record{Source: k.source, Name: k.name}, pin: r.SHA256 == "", facts: moduleFacts{Tag: tag},
	})
}

// had returns what the URL delivered last and its tag, which is empty unless that is
// still whole here.
func (c *Contents) had(k itemKey) (r store.Record, tag string) {
	var f moduleFacts
	r, ok := c.store.Get(k.source, k.name)
	if !ok || k.name != latest || !c.store.Has(r.Module) || json.Unmarshal(r.Data, &f) != nil {
		return r, ""
	}
	return r, f.Tag
}

// unlesser is what a Fetcher may have besides: a download of what is no longer the
// version with a tag.
type unlesser interface {
	DownloadUnless(ctx context.Context, rawURL string, trust oci.Trust, tag string) (io.ReadCloser, string, error)
}

func (c *Contents) download(ctx context.Context, r URLRequest, tag string) (io.ReadCloser, string, error) {
	if f, ok := c.fetcher.(unlesser); ok {
		return f.DownloadUnless(ctx, r.URL, r.Trust, tag)
	}
	body, err := c.fetcher.Download(ctx, r.URL, r.Trust)
	return body, "", err
}

// printable names the item's source for a log: a URL without its query values.
func (c *Contents) printable(it *item) string {
	if it.url == nil {
		return it.key.source
	}
	return Redact(it.url.URL)
}

// Redact returns a URL fit for printing: no userinfo, no values of its query.
func Redact(raw string) string {
	u, err := url.Parse(raw)
	if err != nil {
		return "(a url that cannot be read)"
	}
	u.User, u.Fragment = nil, ""
	if u.RawQuery != "" {
		var names []string
		for _, pair := range strings.Split(u.RawQuery, "&") {
			name, _, _ := strings.Cut(pair, "=")
			names = append(names, name+"=…")
		}
		u.RawQuery = strings.Join(names, "&")
	}
	return u.String()
}

// host is whose share of the fetches under way the item counts against.
func (it *item) host() string {
	if it.url != nil {
		if u, err := url.Parse(it.url.URL); err == nil {
			return u.Host
		}
		return ""
	}
	host, _, _ := strings.Cut(it.key.source, "/")
	return host
}
