package serve

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

const benchSize, benchConnections = 5 << 20, 8

// BenchmarkBesideNginx downloads a file of 5 MB over eight connections, from the module server and from the nginx of
// the machine, by turns. It needs nginx (Debian: apt-get install nginx-light).
func BenchmarkBesideNginx(b *testing.B) {
	nginx, err := exec.LookPath("nginx")
	if err != nil {
		b.Skip("NOT COMPARED: there is no nginx here (apt-get install nginx-light)")
	}
	shelf := newFileShelf(b, benchSize)
	plain := httptest.NewServer(New(shelf, Options{}))
	b.Cleanup(plain.Close)
	secure := httptest.NewUnstartedServer(New(shelf, Options{}))
	secure.TLS = &tls.Config{MinVersion: tls.VersionTLS13}
	secure.EnableHTTP2 = true
	secure.StartTLS()
	b.Cleanup(secure.Close)
	plainNginx, secureNginx := startNginx(b, nginx, shelf.path, secure.TLS.Certificates[0])
	for _, row := range []struct {
		name, url string
		http2     bool
	}{
		{"plain/stile", plain.URL + PathPrefix + token, false},
		{"plain/nginx", "http://" + plainNginx + "/module", false},
		{"tls/stile", secure.URL + PathPrefix + token, false},
		{"tls/nginx", "https://" + secureNginx + "/module", false},
		{"http2/stile", secure.URL + PathPrefix + token, true},
		{"http2/nginx", "https://" + secureNginx + "/module", true},
	} {
		b.Run(row.name, func(b *testing.B) { download(b, row.url, secure.Certificate(), row.http2) })
	}
}

func download(b *testing.B, url string, trusted *x509.Certificate, http2 bool) {
	b.Helper()
	pool := x509.NewCertPool()
	pool.AddCert(trusted)
	work := make(chan struct{})
	var wg sync.WaitGroup
	for range benchConnections {
		t := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS13, ServerName: "example.com"}, ForceAttemptHTTP2: http2, ReadBufferSize: 64 << 10}
		if !http2 {
			t.TLSNextProto = map[string]func(string, *tls.Conn) http.RoundTripper{}
		}
		wg.Go(func() {
			defer t.CloseIdleConnections()
			client, buffer := &http.Client{Transport: t}, make([]byte, 256<<10)
			for range work {
				r, err := client.Get(url)
				if err != nil {
					b.Error(err)
					continue
				}
				n, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, r.Body, buffer)
				_ = r.Body.Close()
				if err != nil || n != benchSize {
					b.Errorf("%d bytes, %v", n, err)
				}
			}
		})
	}
	b.SetBytes(benchSize)
	for b.Loop() {
		work <- struct{}{}
	}
	close(work)
	wg.Wait()
}

// startNginx serves the file with nginx, as Debian sets it up: sendfile, one worker for each core.
func startNginx(b *testing.B, nginx, path string, certificate tls.Certificate) (plain, secure string) {
	b.Helper()
	folder := b.TempDir()
	if err := os.Chmod(folder, 0o755); err != nil {
		b.Fatal(err)
	}
	key, err := x509.MarshalPKCS8PrivateKey(certificate.PrivateKey)
	if err != nil {
		b.Fatal(err)
	}
	for name, block := range map[string]*pem.Block{"crt": {Type: "CERTIFICATE", Bytes: certificate.Certificate[0]}, "key": {Type: "PRIVATE KEY", Bytes: key}} {
		if err := os.WriteFile(filepath.Join(folder, name), pem.EncodeToMemory(block), 0o600); err != nil {
			b.Fatal(err)
		}
	}
	plain, secure = freeAddress(b), freeAddress(b)
	config := strings.NewReplacer("FOLDER", folder, "FILE", path, "PLAIN", plain, "SECURE", secure).Replace(`
user root; worker_processes auto; daemon off; pid FOLDER/pid; error_log FOLDER/error;
events { worker_connections 768; }
http {
	sendfile on; tcp_nopush on; access_log off; keepalive_requests 1000000; client_body_temp_path FOLDER; proxy_temp_path FOLDER; fastcgi_temp_path FOLDER; uwsgi_temp_path FOLDER; scgi_temp_path FOLDER;
	ssl_certificate FOLDER/crt; ssl_certificate_key FOLDER/key; ssl_protocols TLSv1.3;
	server { listen PLAIN; location = /module { alias FILE; default_type application/wasm; } }
	server { listen SECURE ssl http2; location = /module { alias FILE; default_type application/wasm; } }
}`)
	file := filepath.Join(folder, "nginx.conf")
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	command := exec.CommandContext(ctx, nginx, "-c", file, "-p", folder)
	command.Cancel = func() error { return command.Process.Signal(os.Interrupt) } // its workers end with it
	if err := command.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { cancel(); _ = command.Wait() })
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		c, err := net.Dial("tcp", plain)
		if err == nil {
			_ = c.Close()
			return plain, secure
		}
		if time.Now().After(deadline) {
			text, _ := os.ReadFile(filepath.Join(folder, "error"))
			b.Fatal(fmt.Errorf("nginx: %w: %s", err, text))
		}
	}
}

func freeAddress(b *testing.B) string {
	b.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	return l.Addr().String()
}
