package oci

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"
)

func TestP6_BlobIsVerifiedToTheLastByte(t *testing.T) {
	t.Parallel()
	content := bytes.Repeat([]byte("module "), 10_000)
	good := newBlob("", content).Descriptor
	sized := func(n int64) Descriptor { d := good; d.Size = n; return d }
	for name, one := range map[string]struct {
		sent []byte
		want Descriptor
		kind Kind
	}{
		"as it should be":          {sent: content, want: good},
		"empty":                    {sent: nil, want: Descriptor{Digest: someDigest}},
		"last byte changed":        {sent: append(bytes.Clone(content[:len(content)-1]), 'X'), want: good, kind: Mismatch},
		"a byte short":             {sent: content[:len(content)-1], want: good, kind: Mismatch},
		"a byte long":              {sent: append(bytes.Clone(content), 'X'), want: good, kind: Mismatch},
		"nothing":                  {sent: nil, want: good, kind: Mismatch},
		"descriptor says less":     {sent: content, want: sized(good.Size - 1), kind: Mismatch},
		"descriptor says more":     {sent: content, want: sized(good.Size + 1), kind: Mismatch},
		"descriptor says enormous": {sent: content, want: sized(1 << 62), kind: Mismatch},
		"descriptor without size":  {sent: content, want: sized(-1), kind: Invalid},
		"descriptor of no digest":  {sent: content, want: Descriptor{Digest: "sha512:ab"}, kind: Invalid},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, c, r, tr := plainRegistry(t, Settings{}, func(w http.ResponseWriter, req *http.Request) {
				if req.URL.Path != "/v2/" {
					_, _ = w.Write(one.sent)
				}
			})
			b, err := c.Blob(t.Context(), r, one.want, Credential{}, tr)
			if err != nil {
				if !errors.Is(err, one.kind) {
					t.Errorf("got %v", err)
				}
				return
			}
			defer func() {
				if err := b.Close(); err != nil {
					t.Error(err)
				}
			}()
			got, err := io.ReadAll(iotest.HalfReader(b))
			if KindOf(err) != one.kind || one.kind == 0 && err != nil {
				t.Errorf("got %v, want %v", err, one.kind)
			}
			if int64(len(got)) > max(one.want.Size, 0) {
				t.Errorf("%d bytes were handed on, the descriptor says %d", len(got), one.want.Size)
			}
			if _, again := b.Read(make([]byte, 1)); one.kind != 0 && !errors.Is(again, one.kind) {
				t.Errorf("the next Read: %v", again)
			}
		})
	}
}

func TestBlobThatBreaksOffIsUnavailable(t *testing.T) {
	t.Parallel()
	_, c, r, tr := plainRegistry(t, Settings{}, func(w http.ResponseWriter, req *http.Request) {
		if req.URL.Path == "/v2/" {
			return
		}
		w.Header().Set("Content-Length", "100")
		_, _ = io.WriteString(w, "some")
		_ = http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	})
	b, err := c.Blob(t.Context(), r, Descriptor{Digest: someDigest, Size: 100}, Credential{}, tr)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadAll(b); !errors.Is(err, Unavailable) || !strings.HasPrefix(err.Error(), "blob "+r.Source()+"@"+someDigest+": ") {
		t.Errorf("got %v", err)
	}
	_ = b.Close()
}

// pieces is a body that delivers one piece, and then nothing until it is given up.
type pieces struct {
	ctx  context.Context
	rest string
}

func (p *pieces) Read(b []byte) (int, error) {
	if p.rest == "" {
		<-p.ctx.Done()
		return 0, p.ctx.Err()
	}
	n := copy(b, p.rest)
	p.rest = p.rest[n:]
	return n, nil
}

func (*pieces) Close() error { return nil }

// The deadline of a stream is for the server: each piece must come within it. Who
// reads may take as long as it likes. Any other answer has one deadline as a whole.
func TestStreamThatStallsIsGivenUp_ButASlowReaderIsNot(t *testing.T) {
	t.Parallel()
	const limit = 30 * time.Second
	for _, stream := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			w := watch(t.Context(), limit, stream)
			w.pause()
			b := &body{ReadCloser: &pieces{w.ctx, "some"}, watch: w, give: func() {}}
			time.Sleep(10 * limit) // the reader's own time
			n, err := b.Read(make([]byte, 100))
			if n != 4 || err != nil {
				t.Errorf("stream %v: %d bytes, %v", stream, n, err)
			}
			before := time.Now()
			_, err = b.Read(make([]byte, 100))
			if !errors.Is(err, Unavailable) || !errors.Is(err, errStalled) {
				t.Errorf("stream %v: got %v", stream, err)
			}
			if waited := time.Since(before); stream != (waited == limit) || !stream && waited != 0 {
				t.Errorf("stream %v: waited %v", stream, waited)
			}
			if err := b.Close(); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestDownload(t *testing.T) {
	t.Parallel()
	w := newServer(t, "127.0.0.1", nil)
	w.serve(func(rw http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/m.wasm":
			_, _ = io.WriteString(rw, "module")
		case "/moved":
			redirect("/m.wasm?x=y")(rw, r)
		case "/gzip":
			rw.Header().Set("Content-Encoding", "gzip")
			_, _ = io.WriteString(rw, "as it is")
		case "/denied":
			rw.WriteHeader(http.StatusForbidden)
		default:
			http.NotFound(rw, r)
		}
	})
	c := newClient(t, Settings{}, w.host)
	base := "http://" + w.host
	for url, want := range map[string]string{base + "/m.wasm": "module", base + "/moved#fragment": "module", base + "/gzip": "as it is"} {
		b, err := c.Download(t.Context(), url, trustOf(t, c, url))
		if err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(b); err != nil || string(got) != want {
			t.Errorf("%s: %q, %v", url, got, err)
		}
		_ = b.Close()
	}
	for url, kind := range map[string]Kind{base + "/none": NotFound, base + "/denied?signature=SECRETWORD": Unauthorized} {
		_, err := c.Download(t.Context(), url, trustOf(t, c, url))
		if !errors.Is(err, kind) || strings.Contains(err.Error(), "SECRETWORD") {
			t.Errorf("%s: %v", url, err)
		}
	}
	for _, url := range []string{
		"ftp://x/y", "http:///y", "https://user:SECRETWORD@x/y", "https://SECRETWORD@x/y", "://SECRETWORD", "/SECRETWORD", "https://x:SECRETWORD/", "oci://x/y", "file:///SECRETWORD",
	} {
		_, err := c.Download(t.Context(), url, Trust{})
		if !errors.Is(err, Invalid) || strings.Contains(err.Error(), "SECRETWORD") {
			t.Errorf("%s: %v", url, err)
		}
		if _, err := HostOf(url); !errors.Is(err, Invalid) || strings.Contains(err.Error(), "SECRETWORD") {
			t.Errorf("host of %s: %v", url, err)
		}
	}
	other, err := c.Trust("other.example", "team-a")
	if err != nil {
		t.Fatal(err)
	}
	for _, tr := range []Trust{{}, other} {
		if _, err := c.Download(t.Context(), base+"/m.wasm", tr); !errors.Is(err, Blocked) {
			t.Errorf("with trust for %q: %v", tr.Host(), err)
		}
	}
	if _, err := c.Download(t.Context(), "http://other.example/m.wasm", other); !errors.Is(err, Blocked) || !strings.Contains(err.Error(), "plainHTTP") {
		t.Errorf("plain HTTP to a host that is not named for it: %v", err)
	}
}

func trustOf(t testing.TB, c *Client, url string) Trust {
	t.Helper()
	host, err := HostOf(url)
	if err != nil {
		t.Fatal(err)
	}
	tr, err := c.Trust(host, "team-a")
	if err != nil {
		t.Fatal(err)
	}
	return tr
}

func TestHostOf(t *testing.T) {
	t.Parallel()
	for url, want := range map[string]string{
		"https://R.Example/x": "r.example", "https://r.example:443/x": "r.example", "http://r.example:80/x": "r.example",
		"http://r.example/x": "r.example", "https://r.example:80/x": "r.example:80", "https://r.example:8443/x?y#z": "r.example:8443",
		"https://[::1]:5000/": "[::1]:5000", "https://[::1]/": "[::1]", "https://docker.io/x": "index.docker.io",
	} {
		if got, err := HostOf(url); err != nil || got != want {
			t.Errorf("%s: got %q, %v; want %q", url, got, err, want)
		}
	}
}

func TestPush_Layouts(t *testing.T) {
	t.Parallel()
	module := []byte("\x00asm\x01\x00\x00\x00")
	for layout, want := range map[Layout]string{
		LayoutArtifact: "application/vnd.oci.image.manifest.v1+json application/vnd.wasm.config.v0+json application/wasm",
		LayoutOCI:      "application/vnd.oci.image.manifest.v1+json application/vnd.oci.image.config.v1+json application/vnd.oci.image.layer.v1.tar+gzip",
		LayoutDocker:   "application/vnd.docker.distribution.manifest.v2+json application/vnd.docker.container.image.v1+json application/vnd.docker.image.rootfs.diff.tar.gzip",
	} {
		a, err := lay(module, layout)
		if err != nil {
			t.Fatal(err)
		}
		b, err := lay(module, layout)
		if err != nil || a.manifest.Digest != b.manifest.Digest {
			t.Errorf("%s: digests %s and %s, %v", layout, a.manifest.Digest, b.manifest.Digest, err)
		}
		if got := fmt.Sprint(a.manifest.MediaType, " ", a.blobs[0].MediaType, " ", a.blobs[1].MediaType); got != want {
			t.Errorf("%s: got %s", layout, got)
		}
	}
	if _, err := lay(module, "zip"); err == nil {
		t.Error("an unknown layout is taken")
	}
}
