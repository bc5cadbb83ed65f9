package oci

import (
	"context"
	"fmt"
	"net"
	"net/http"
)

func redirectRows() []row {
	return []row{{
		name: "cross-host redirect of a manifest",
		set: func(s *stage) {
			s.registry.serve(routes(map[string]http.HandlerFunc{"/v2/": challengeBasic, manifestPath: redirect("https://" + s.cdn.host + "/m?signature=x")}))
			s.cdn.serve(found)
		},
		want: func(s *stage) map[*server][]string {
			return map[*server][]string{s.registry: {"GET /v2/", "HEAD " + manifestPath + " USER"}, s.cdn: {"HEAD /m"}}
		},
	}, {
		name: "cross-host redirect of a blob, bearer",
		set: func(s *stage) {
			s.registry.serve(routes(map[string]http.HandlerFunc{
				"/v2/": challengeBearer("https://" + s.registry.host + "/token"), "/token": give("TOKEN"), blobPath: redirect("https://" + s.cdn.host + "/b"),
			}))
			s.cdn.serve(empty)
		},
		do: readBlob,
		want: func(s *stage) map[*server][]string {
			return map[*server][]string{s.registry: {"GET /v2/", "GET /token USER", "GET " + blobPath + " Bearer TOKEN"}, s.cdn: {"GET /b"}}
		},
	}, {
		name: "redirect to a name beneath the registry's",
		set: func(s *stage) {
			s.registry.serve(routes(map[string]http.HandlerFunc{"/v2/": challengeBasic, manifestPath: redirect("https://" + s.sub.host + "/m")}))
			s.sub.serve(found)
		},
		want: func(s *stage) map[*server][]string {
			return map[*server][]string{s.registry: {"GET /v2/", "HEAD " + manifestPath + " USER"}, s.sub: {"HEAD /m"}}
		},
	}, {
		name: "redirect to another port of the host",
		set: func(s *stage) {
			s.registry.serve(routes(map[string]http.HandlerFunc{"/v2/": challengeBasic, manifestPath: redirect("https://" + s.port.host + "/m")}))
			s.port.serve(found)
		},
		want: func(s *stage) map[*server][]string {
			return map[*server][]string{s.registry: {"GET /v2/", "HEAD " + manifestPath + " USER"}, s.port: {"HEAD /m"}}
		},
	}, {
		name: "redirect within the host",
		set: func(s *stage) {
			s.registry.serve(routes(map[string]http.HandlerFunc{"/v2/": challengeBasic, manifestPath: redirect("/elsewhere"), "/elsewhere": found}))
		},
		want: func(s *stage) map[*server][]string {
			return map[*server][]string{s.registry: {"GET /v2/", "HEAD " + manifestPath + " USER", "HEAD /elsewhere USER"}}
		},
	}, {
		name: "redirect away and back",
		set: func(s *stage) {
			s.registry.serve(routes(map[string]http.HandlerFunc{"/v2/": challengeBasic, manifestPath: redirect("https://" + s.cdn.host + "/m"), "/back": found}))
			s.cdn.serve(redirect("https://" + s.registry.host + "/back"))
		},
		want: func(s *stage) map[*server][]string {
			return map[*server][]string{s.registry: {"GET /v2/", "HEAD " + manifestPath + " USER", "HEAD /back"}, s.cdn: {"HEAD /m"}}
		},
	}, {
		name: "redirect from https to http",
		kind: Blocked,
		set: func(s *stage) {
			s.registry.serve(routes(map[string]http.HandlerFunc{"/v2/": challengeBasic, manifestPath: redirect("http://" + s.plain.host + "/m")}))
		},
		want: func(s *stage) map[*server][]string {
			return map[*server][]string{s.registry: {"GET /v2/", "HEAD " + manifestPath + " USER"}}
		},
	}, {
		name: "redirect to a link-local address",
		kind: Blocked,
		set: func(s *stage) {
			s.registry.serve(routes(map[string]http.HandlerFunc{"/v2/": challengeBasic, manifestPath: redirect("https://169.254.169.254/latest/meta-data")}))
		},
		want: func(s *stage) map[*server][]string {
			return map[*server][]string{s.registry: {"GET /v2/", "HEAD " + manifestPath + " USER"}}
		},
	}, {
		name: "redirect with a user in it",
		kind: Blocked,
		set: func(s *stage) {
			s.registry.serve(routes(map[string]http.HandlerFunc{"/v2/": challengeBasic, manifestPath: redirect("https://u:p@" + s.cdn.host + "/m")}))
		},
		want: func(s *stage) map[*server][]string {
			return map[*server][]string{s.registry: {"GET /v2/", "HEAD " + manifestPath + " USER"}}
		},
	}, {
		name: "basic challenge after a redirect",
		kind: Unauthorized,
		set: func(s *stage) {
			s.registry.serve(routes(map[string]http.HandlerFunc{"/v2/": challengeBasic, manifestPath: redirect("https://" + s.evil.host + "/m")}))
			s.evil.serve(challengeBasic)
		},
		want: func(s *stage) map[*server][]string {
			// A refusal that does not look like a registry's is asked once more, by GET.
			return map[*server][]string{
				s.registry: {"GET /v2/", "HEAD " + manifestPath + " USER", "GET " + manifestPath + " USER"},
				s.evil:     {"HEAD /m", "GET /m"},
			}
		},
	}, {
		name: "bearer challenge after a redirect names a realm over verified TLS",
		kind: Unauthorized,
		set: func(s *stage) {
			s.registry.serve(routes(map[string]http.HandlerFunc{"/v2/": empty, manifestPath: redirect("https://" + s.cdn.host + "/m")}))
			s.cdn.serve(challengeBearer("https://" + s.evil.host + "/token"))
			s.evil.serve(give("TOKEN"))
		},
		want: func(s *stage) map[*server][]string {
			return map[*server][]string{
				s.registry: {"GET /v2/", "HEAD " + manifestPath, "GET " + manifestPath}, s.cdn: {"HEAD /m", "GET /m"},
			}
		},
	}, {
		name: "the ping redirects to a host that challenges",
		kind: NotFound,
		set: func(s *stage) {
			s.registry.serve(routes(map[string]http.HandlerFunc{"/v2/": redirect("https://" + s.evil.host + "/v2/")}))
			s.evil.serve(challengeBearer("https://" + s.evil.host + "/token"))
		},
		want: func(s *stage) map[*server][]string {
			return map[*server][]string{s.registry: {"GET /v2/", "HEAD " + manifestPath, "GET " + manifestPath}}
		},
	}, {
		name: "endless redirects",
		kind: Unavailable,
		set: func(s *stage) {
			s.registry.serve(routes(map[string]http.HandlerFunc{"/v2/": empty, manifestPath: redirect("https://" + s.cdn.host + "/m")}))
			s.cdn.serve(redirect("/m"))
		},
		want: func(s *stage) map[*server][]string {
			return map[*server][]string{s.registry: {"GET /v2/", "HEAD " + manifestPath}, s.cdn: {"HEAD /m", "HEAD /m", "HEAD /m", "HEAD /m", "HEAD /m"}}
		},
	}, {
		name: "upload to another host",
		set: func(s *stage) {
			blobs := func(w http.ResponseWriter, r *http.Request) {
				switch r.Method {
				case http.MethodPost:
					w.Header().Set("Location", "https://"+s.cdn.host+"/upload")
					w.WriteHeader(http.StatusAccepted)
				case http.MethodPut:
					w.WriteHeader(http.StatusCreated)
				default:
					http.NotFound(w, r)
				}
			}
			s.registry.serve(authorized("Basic", challengeBasic, blobs))
			s.cdn.serve(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusCreated) })
		},
		do: func(ctx context.Context, s *stage, c *Client, t Trust) error {
			_, err := c.Push(ctx, []byte("x"), s.image, LayoutArtifact, s.credential, t)
			return err
		},
		want: func(s *stage) map[*server][]string {
			im, _ := lay([]byte("x"), LayoutArtifact)
			return map[*server][]string{
				s.registry: {
					"GET /v2/",
					"HEAD /v2/a/p/blobs/" + im.blobs[0].Digest + " USER", "POST /v2/a/p/blobs/uploads/ USER",
					"HEAD /v2/a/p/blobs/" + im.blobs[1].Digest + " USER", "POST /v2/a/p/blobs/uploads/ USER",
					"PUT " + manifestPath + " USER",
				},
				s.cdn: {"PUT /upload", "PUT /upload"},
			}
		},
	}, {
		name: "client certificate is for its host alone",
		set: func(s *stage) {
			cert := testAuthority().certificate(s.t, "stile-client")
			s.settings.Registries[0].Certificate, s.settings.Registries[0].Namespaces = &cert, []string{"team-a"}
			s.registry.serve(routes(map[string]http.HandlerFunc{"/v2/": empty, manifestPath: redirect("https://" + s.cdn.host + "/m")}))
			s.cdn.serve(found)
		},
		want: func(s *stage) map[*server][]string {
			return map[*server][]string{s.registry: {"GET /v2/ as stile-client", "HEAD " + manifestPath + " as stile-client"}, s.cdn: {"HEAD /m"}}
		},
	}, {
		name: "client certificate is not for every namespace",
		set: func(s *stage) {
			cert := testAuthority().certificate(s.t, "stile-client")
			s.settings.Registries[0].Certificate = &cert // and no namespaces
			s.registry.serve(routes(map[string]http.HandlerFunc{"/v2/": empty, manifestPath: found}))
		},
		want: func(s *stage) map[*server][]string {
			return map[*server][]string{s.registry: {"GET /v2/", "HEAD " + manifestPath}}
		},
	}, {
		name: "redirect to a registry that is for another namespace",
		kind: Blocked,
		set: func(s *stage) {
			s.settings.Registries = append(s.settings.Registries, Registry{Host: s.cdn.host, Namespaces: []string{"team-b"}})
			s.registry.serve(routes(map[string]http.HandlerFunc{"/v2/": challengeBasic, manifestPath: redirect("https://" + s.cdn.host + "/m")}))
		},
		want: func(s *stage) map[*server][]string {
			return map[*server][]string{s.registry: {"GET /v2/", "HEAD " + manifestPath + " USER"}}
		},
	}, {
		name: "redirect to a registry that is for this namespace, from one that others may use",
		kind: Blocked,
		set: func(s *stage) {
			s.settings.Registries[0].Namespaces = []string{"team-a", "team-c"}
			s.settings.Registries = append(s.settings.Registries, Registry{Host: s.cdn.host, Namespaces: []string{"team-a"}})
			s.registry.serve(routes(map[string]http.HandlerFunc{"/v2/": challengeBasic, manifestPath: redirect("https://" + s.cdn.host + "/m")}))
		},
		want: func(s *stage) map[*server][]string {
			return map[*server][]string{s.registry: {"GET /v2/", "HEAD " + manifestPath + " USER"}}
		},
	}, {
		name: "redirect between registries that are for the same namespaces",
		set: func(s *stage) {
			s.settings.Registries[0].Namespaces = []string{"team-a"}
			s.settings.Registries = append(s.settings.Registries, Registry{Host: s.cdn.host, Namespaces: []string{"team-a", "team-b"}})
			s.registry.serve(routes(map[string]http.HandlerFunc{"/v2/": challengeBasic, manifestPath: redirect("https://" + s.cdn.host + "/m")}))
			s.cdn.serve(found)
		},
		want: func(s *stage) map[*server][]string {
			return map[*server][]string{s.registry: {"GET /v2/", "HEAD " + manifestPath + " USER"}, s.cdn: {"HEAD /m"}}
		},
	}, {
		name: "plaintext answer on the TLS port",
		kind: Unavailable,
		set: func(s *stage) {
			s.settings.Registries = nil
			s.image = ref(s.t, s.plain.host+"/a/p:v1")
		},
		want: func(*stage) map[*server][]string { return nil },
	}, {
		name: "private by literal address: no plain HTTP because of it",
		kind: Unavailable,
		set: func(s *stage) {
			_, port, _ := net.SplitHostPort(s.plain.host)
			s.settings.Registries = nil
			s.image = ref(s.t, "127.0.0.1:"+port+"/a/p:v1")
		},
		want: func(*stage) map[*server][]string { return nil },
	}, {
		name: "named, private, by DNS: no plain HTTP because of it",
		kind: Unavailable,
		set: func(s *stage) {
			s.settings.Registries = []Registry{{Host: s.plain.host}}
			s.image = ref(s.t, s.plain.host+"/a/p:v1")
		},
		want: func(*stage) map[*server][]string { return nil },
	}, {
		name: "loopback by DNS, not named",
		kind: Blocked,
		set: func(s *stage) {
			s.settings.AllowLoopback, s.settings.Registries = false, nil
			s.registry.serve(challengeBasic)
		},
		want: func(*stage) map[*server][]string { return nil },
	}, {
		name: "a redirect to a name that leads to loopback",
		kind: Blocked,
		set: func(s *stage) {
			s.settings.AllowLoopback = false // the registry itself is named
			s.registry.serve(routes(map[string]http.HandlerFunc{"/v2/": challengeBasic, manifestPath: redirect("https://" + s.cdn.host + "/m")}))
		},
		want: func(s *stage) map[*server][]string {
			return map[*server][]string{s.registry: {"GET /v2/", "HEAD " + manifestPath + " USER"}}
		},
	}, {
		name: "DNS rebinding: the named registry moves to the metadata service",
		kind: Blocked,
		set: func(s *stage) {
			s.names.answers["registry.test"] = []string{"127.0.0.1", "169.254.169.254"}
			s.registry.serve(routes(map[string]http.HandlerFunc{"/v2/": challengeBasic, manifestPath: found}))
		},
		do: func(ctx context.Context, s *stage, c *Client, t Trust) error {
			if err := checkIt(ctx, s, c, t); err != nil {
				return fmt.Errorf("the first time: %w", err)
			}
			s.registry.http.CloseClientConnections()
			c.Forget(s.credential.Fingerprint())
			return checkIt(ctx, s, c, t)
		},
		want: func(s *stage) map[*server][]string {
			return map[*server][]string{s.registry: {"GET /v2/", "HEAD " + manifestPath + " USER"}}
		},
	}, {
		name: "a certificate that nobody signed",
		kind: Unavailable,
		set: func(s *stage) {
			s.image = ref(s.t, s.untrusted.host+"/a/p:v1")
			s.untrusted.serve(challengeBasic)
		},
		want: func(*stage) map[*server][]string { return nil },
	}}
}
