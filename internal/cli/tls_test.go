package cli

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"log/slog"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/stileproject/stile/api/v1alpha1"
)

// authority is a certificate authority that writes its certificates into a folder.
type authority struct {
	t      *testing.T
	folder string
	cert   *x509.Certificate
	key    *ecdsa.PrivateKey
	serial int64
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	a := &authority{t: t, folder: t.TempDir()}
	a.cert, a.key = a.issue("ca", &x509.Certificate{IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign})
	return a
}

// issue writes name.crt and name.key.
func (a *authority) issue(name string, template *x509.Certificate) (*x509.Certificate, *ecdsa.PrivateKey) {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	a.serial++
	template.SerialNumber = big.NewInt(a.serial)
	template.Subject = pkix.Name{CommonName: name}
	template.NotBefore, template.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	parent, signer := a.cert, a.key
	if parent == nil {
		parent, signer = template, key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, signer)
	if err != nil {
		a.t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		a.t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		a.t.Fatal(err)
	}
	write(a.t, a.folder, name+".crt", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})))
	write(a.t, a.folder, name+".key", string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private})))
	return cert, key
}

func (a *authority) server(name string) {
	a.issue(name, &x509.Certificate{IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}})
}

func (a *authority) client(name, uri string) {
	u, err := url.Parse(uri)
	if err != nil {
		a.t.Fatal(err)
	}
	template := &x509.Certificate{ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}
	if uri != "" {
		template.URIs = []*url.URL{u}
	}
	a.issue(name, template)
}

// path is a file of the authority's folder.
func (a *authority) path(name string) string { return filepath.Join(a.folder, name) }

// config is how a client with that certificate connects; "" is none.
func (a *authority) config(client string) *tls.Config {
	a.t.Helper()
	c := &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: x509.NewCertPool()}
	c.RootCAs.AddCert(a.cert)
	if client != "" {
		pair, err := tls.LoadX509KeyPair(a.path(client+".crt"), a.path(client+".key"))
		if err != nil {
			a.t.Fatal(err)
		}
		c.Certificates = []tls.Certificate{pair}
	}
	return c
}

// wire is a codec for messages that are bytes already: the test knows no Envoy types.
type wire struct{}

func (wire) Marshal(v any) ([]byte, error) { return v.([]byte), nil }
func (wire) Unmarshal(data []byte, v any) error {
	*v.(*[]byte) = append([]byte(nil), data...)
	return nil
}
func (wire) Name() string { return "proto" }

// discovery is a DiscoveryRequest for clusters from a node.
func discovery(namespace, cluster string) []byte {
	field := func(b []byte, n protowire.Number, value []byte) []byte {
		return protowire.AppendBytes(protowire.AppendTag(b, n, protowire.BytesType), value)
	}
	text := field(nil, 3, []byte(namespace)) // Value.string_value
	entry := field(field(nil, 1, []byte("NAMESPACE")), 2, text)
	node := field(field(field(nil, 1, []byte("gw-0")), 2, []byte(cluster)), 3, field(nil, 1, entry))
	return field(field(nil, 2, node), 4, []byte("type.googleapis.com/envoy.config.cluster.v3.Cluster"))
}

// ask opens an ADS stream as a node and returns the code with which it is refused, or OK
// once it is answered.
func ask(t *testing.T, address string, c *tls.Config, namespace, cluster string) codes.Code {
	t.Helper()
	conn, err := grpc.NewClient("passthrough:///"+address, grpc.WithTransportCredentials(credentials.NewTLS(c)))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	stream, err := conn.NewStream(ctx, &grpc.StreamDesc{ClientStreams: true, ServerStreams: true},
		"/envoy.service.discovery.v3.AggregatedDiscoveryService/StreamAggregatedResources", grpc.ForceCodec(wire{}))
	if err != nil {
		return status.Code(err)
	}
	if err := stream.SendMsg(discovery(namespace, cluster)); err != nil {
		return status.Code(err)
	}
	var answer []byte
	return status.Code(stream.RecvMsg(&answer))
}

func TestServe_CertificateBindsNamespaceAndCluster(t *testing.T) {
	t.Parallel()
	a := newAuthority(t)
	a.server("server")
	a.client("team-a", "spiffe://cluster.local/ns/team-a/sa/gateway")
	a.client("stranger", "spiffe://cluster.local/ns/team-b/sa/gateway")
	a.client("nameless", "")
	other := newAuthority(t)
	other.client("team-a", "spiffe://cluster.local/ns/team-a/sa/gateway")
	tlsFiles := fmt.Sprintf("{ certFile: %s, keyFile: %s, clientCAFile: %s }", a.path("server.crt"), a.path("server.key"), a.path("ca.crt"))
	_, config := serveFolder(t, "xds: { address: '127.0.0.1:0', tls: "+tlsFiles+", identities: [{ spiffe: 'spiffe://cluster.local/ns/team-a/*', namespaces: [team-a], clusters: ['ed*'] }] }\n")
	at := started(t, config)
	foreign := other.config("team-a")
	foreign.RootCAs.AddCert(a.cert)
	for name, row := range map[string]struct {
		tls                *tls.Config
		namespace, cluster string
		want               codes.Code
	}{
		"its own":              {a.config("team-a"), "team-a", "edge", codes.OK},
		"another namespace":    {a.config("team-a"), "team-b", "edge", codes.PermissionDenied},
		"another cluster":      {a.config("team-a"), "team-a", "core", codes.PermissionDenied},
		"another identity":     {a.config("stranger"), "team-a", "edge", codes.PermissionDenied},
		"no identity":          {a.config("nameless"), "team-a", "edge", codes.PermissionDenied},
		"no certificate":       {a.config(""), "team-a", "edge", codes.Unavailable},
		"another's authority":  {foreign, "team-a", "edge", codes.Unavailable},
		"what it does not say": {a.config("team-a"), "", "edge", codes.PermissionDenied},
	} {
		t.Run(name, func(t *testing.T) {
			if got := ask(t, at.XDS, row.tls, row.namespace, row.cluster); got != row.want {
				t.Errorf("want %v, got %v", row.want, got)
			}
		})
	}
}

// By its id, which no certificate binds, or its cluster a proxy may be assigned another namespace: its certificate must be good for that.
func TestP2_AnAssignmentIsHeldToTheCertificate(t *testing.T) {
	t.Parallel()
	a := newAuthority(t)
	a.server("server")
	a.client("team-a", "spiffe://cluster.local/ns/team-a/sa/gateway")
	tlsFiles := fmt.Sprintf("{ certFile: %s, keyFile: %s, clientCAFile: %s }", a.path("server.crt"), a.path("server.key"), a.path("ca.crt"))
	_, config := serveFolder(t, "xds: { address: '127.0.0.1:0', tls: "+tlsFiles+", identities: [{ spiffe: 'spiffe://cluster.local/ns/team-a/*', namespaces: [team-a] }] }\n")
	text, err := os.ReadFile(config)
	if err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Dir(config), filepath.Base(config), strings.Replace(string(text), "envoy: { directory: ./envoy }",
		"envoy: { directory: ./envoy, default: edge.yaml, nodes: [{ cluster: legacy-a, namespace: team-a }, { cluster: legacy-b, namespace: team-b }] }", 1))
	at := started(t, config)
	for name, row := range map[string]struct {
		namespace, cluster string
		want               codes.Code
	}{
		"as it says":                              {"team-a", "edge", codes.OK},
		"assigned what its certificate has":       {"", "legacy-a", codes.OK},
		"assigned another's":                      {"team-a", "legacy-b", codes.PermissionDenied},
		"says another's, and is assigned its own": {"team-b", "legacy-a", codes.OK},
	} {
		t.Run(name, func(t *testing.T) {
			if got := ask(t, at.XDS, a.config("team-a"), row.namespace, row.cluster); got != row.want {
				t.Errorf("want %v, got %v", row.want, got)
			}
		})
	}
}

func TestServerTLS_FollowsItsFiles(t *testing.T) {
	t.Parallel()
	a := newAuthority(t)
	a.server("server")
	files := v1alpha1.TLSConfig{CertFile: a.path("server.crt"), KeyFile: a.path("server.key")}
	r := &reloading{files: files}
	serial := func() int64 {
		t.Helper()
		r.looked = time.Time{}
		c, err := r.config(nil)
		if err != nil {
			t.Fatal(err)
		}
		leaf, err := x509.ParseCertificate(c.Certificates[0].Certificate[0])
		if err != nil {
			t.Fatal(err)
		}
		return leaf.SerialNumber.Int64()
	}
	later := time.Now()
	changed := func() {
		later = later.Add(time.Second)
		for _, name := range []string{"server.crt", "server.key"} {
			if err := os.Chtimes(a.path(name), later, later); err != nil {
				t.Fatal(err)
			}
		}
	}
	first := serial()
	a.server("server")
	changed()
	second := serial()
	if first == second {
		t.Error("the new certificate is not used")
	}
	write(t, a.folder, "server.crt", "broken")
	changed()
	if serial() != second {
		t.Error("a broken file took the certificate away")
	}
	a.server("server")
	changed()
	if serial() == second {
		t.Error("the repaired certificate is not used")
	}
}

func TestServerTLS_FilesThatAreNoCertificates(t *testing.T) {
	t.Parallel()
	a := newAuthority(t)
	a.server("server")
	text := write(t, a.folder, "text.pem", "text")
	for _, files := range []v1alpha1.TLSConfig{
		{CertFile: a.path("missing.crt"), KeyFile: a.path("server.key")},
		{CertFile: text, KeyFile: a.path("server.key")},
		{CertFile: a.path("ca.crt"), KeyFile: a.path("server.key")},
		{CertFile: a.path("server.crt"), KeyFile: a.path("server.key"), ClientCAFile: text},
	} {
		if _, err := serverTLS("xds.tls", files, nil); codeOf(err) != Usage {
			t.Errorf("%+v: %v", files, err)
		}
	}
	if c, err := serverTLS("xds.tls", v1alpha1.TLSConfig{}, nil); c != nil || err != nil {
		t.Errorf("without files: %v, %v", c, err)
	}
}

// Envoy's clients end at TLS 1.2 unless told otherwise, and neither side says why nothing comes: the log does, with the remedy.
func TestServerTLS_AClientThatEndsAtTLS12IsTurnedAwayAndTheLogNamesTheRemedy(t *testing.T) {
	t.Parallel()
	a := newAuthority(t)
	a.server("server")
	var log strings.Builder
	c, err := serverTLS("xds.tls", v1alpha1.TLSConfig{CertFile: a.path("server.crt"), KeyFile: a.path("server.key")}, slog.New(slog.NewTextHandler(&log, nil)), "h2")
	if err != nil {
		t.Fatal(err)
	}
	shake := func(most uint16) error {
		client, server := net.Pipe()
		done := make(chan error, 1)
		go func() { done <- tls.Server(server, c).Handshake(); _ = server.Close() }()
		err := tls.Client(client, &tls.Config{MinVersion: tls.VersionTLS12, MaxVersion: most, InsecureSkipVerify: true}).Handshake()
		_ = client.Close()
		<-done
		return err
	}
	if err := shake(tls.VersionTLS13); err != nil || log.String() != "" {
		t.Errorf("a client of today: %v, %s", err, log.String())
	}
	for range 5 {
		if shake(tls.VersionTLS12) == nil {
			t.Fatal("TLS 1.2 is taken")
		}
	}
	if text := log.String(); strings.Count(text, "tls_maximum_protocol_version: TLSv1_3") != 1 || !strings.Contains(text, "listener=xds.tls") {
		t.Errorf("want the remedy, once:\n%s", text)
	}
}
