package serve

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"io"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
)

// secure serves s over HTTP/2, and returns a client that speaks it.
func secure(t *testing.T, s Opener, o Options) (string, *http.Client) {
	t.Helper()
	server := httptest.NewUnstartedServer(New(s, o))
	server.EnableHTTP2 = true
	server.StartTLS()
	t.Cleanup(server.Close)
	pool := x509.NewCertPool()
	pool.AddCert(server.Certificate())
	transport := &http.Transport{ForceAttemptHTTP2: true, TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: pool}}
	t.Cleanup(transport.CloseIdleConnections)
	return server.URL, &http.Client{Transport: transport}
}

func TestServe_HTTP2(t *testing.T) {
	t.Parallel()
	module := bytes.Repeat([]byte("0123456789"), 300_000)
	var downloads atomic.Int32
	url, client := secure(t, &shelf{bytes: module}, Options{Downloaded: func(Module) { downloads.Add(1) }})
	for name, row := range map[string]struct {
		method, wanted string
		status         int
		body           []byte
	}{
		"whole": {"GET", "", 200, module},
		"head":  {"HEAD", "", 200, nil},
		"range": {"GET", "bytes=10-19", 206, module[10:20]},
	} {
		r, err := http.NewRequestWithContext(t.Context(), row.method, url+PathPrefix+token, nil)
		if err != nil {
			t.Fatal(err)
		}
		if row.wanted != "" {
			r.Header.Set("Range", row.wanted)
		}
		answer, err := client.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(answer.Body)
		_ = answer.Body.Close()
		if err != nil || answer.StatusCode != row.status || answer.ProtoMajor != 2 || !bytes.Equal(body, row.body) || answer.Header.Get("ETag") != `"`+sum+`"` {
			t.Errorf("%s: %v, %s %s, %d bytes, want %d", name, err, answer.Proto, answer.Status, len(body), len(row.body))
		}
	}
	if downloads.Load() != 1 {
		t.Errorf("%d downloads, want the whole one alone", downloads.Load())
	}
}

// The right ends in the middle of a body: that stream is reset, and the connection's others go on.
func TestServe_HTTP2ClosedInTheMiddle(t *testing.T) {
	t.Parallel()
	var asked atomic.Int32
	url, client := secure(t, &shelf{
		bytes:  bytes.Repeat([]byte("x"), 8*step),
		stands: func() bool { return asked.Add(1) <= 3 }, // at the request, then for two MiB
	}, Options{})
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url+PathPrefix+token, nil)
	if err != nil {
		t.Fatal(err)
	}
	answer, err := client.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	n, err := io.Copy(io.Discard, answer.Body)
	_ = answer.Body.Close()
	if err == nil || n > 2*step {
		t.Errorf("%d bytes, and %v: the body ended as if it were whole", n, err)
	}
	asked.Store(-100)
	again, err := client.Do(r.Clone(t.Context()))
	if err != nil {
		t.Fatal(err)
	}
	if n, err := io.Copy(io.Discard, again.Body); err != nil || n != 8*step {
		t.Errorf("%d bytes, %v", n, err)
	}
	_ = again.Body.Close()
}
