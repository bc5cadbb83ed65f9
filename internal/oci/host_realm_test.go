package oci

import (
	"fmt"
	"net/http"
)

func realmRows() []row {
	registry := func(s *stage, realm string) {
		challenge := challengeBearer(realm)
		s.registry.serve(routes(map[string]http.HandlerFunc{
			"/v2/": challenge, manifestPath: authorized("Bearer TOKEN", challenge, found), "/token": give("TOKEN"),
		}))
		for _, one := range []*server{s.auth, s.evil, s.plain, s.untrusted, s.port} {
			one.serve(give("TOKEN"))
		}
	}
	pingOnly := func(s *stage) map[*server][]string { return map[*server][]string{s.registry: {"GET /v2/"}} }
	return []row{{
		name: "realm on the registry itself",
		set:  func(s *stage) { registry(s, "https://"+s.registry.host+"/token") },
		want: func(s *stage) map[*server][]string {
			return map[*server][]string{s.registry: {"GET /v2/", "GET /token USER", "HEAD " + manifestPath + " Bearer TOKEN"}}
		},
	}, {
		name: "realm on another host over verified TLS",
		set:  func(s *stage) { registry(s, "https://"+s.auth.host+"/token") },
		want: func(s *stage) map[*server][]string {
			return map[*server][]string{s.registry: {"GET /v2/", "HEAD " + manifestPath + " Bearer TOKEN"}, s.auth: {"GET /token USER"}}
		},
	}, {
		name: "realm on another port of the host over verified TLS",
		set:  func(s *stage) { registry(s, "https://"+s.port.host+"/token") },
		want: func(s *stage) map[*server][]string {
			return map[*server][]string{s.registry: {"GET /v2/", "HEAD " + manifestPath + " Bearer TOKEN"}, s.port: {"GET /token USER"}}
		},
	}, {
		name: "realm on another host that tokenHosts lists",
		set: func(s *stage) {
			s.settings.Registries[0].TokenHosts = []string{s.auth.host}
			registry(s, "https://"+s.auth.host+"/token")
		},
		want: func(s *stage) map[*server][]string {
			return map[*server][]string{s.registry: {"GET /v2/", "HEAD " + manifestPath + " Bearer TOKEN"}, s.auth: {"GET /token USER"}}
		},
	}, {
		name: "realm on another host that tokenHosts does not list",
		kind: Blocked,
		set: func(s *stage) {
			s.settings.Registries[0].TokenHosts = []string{s.auth.host}
			registry(s, "https://"+s.evil.host+"/token")
		},
		want: pingOnly,
	}, {
		name: "realm on another host with a certificate that nobody signed",
		kind: Unavailable,
		set:  func(s *stage) { registry(s, "https://"+s.untrusted.host+"/token") },
		want: pingOnly,
	}, {
		name: "realm over plain HTTP, on a host named for it",
		kind: Blocked,
		set:  func(s *stage) { registry(s, "http://"+s.plain.host+"/token") },
		want: pingOnly,
	}, {
		name: "realm over plain HTTP on the registry's own host",
		kind: Blocked,
		set:  func(s *stage) { registry(s, "http://"+s.registry.host+"/token") },
		want: pingOnly,
	}, {
		name: "realm on a link-local host",
		kind: Blocked,
		set:  func(s *stage) { registry(s, "https://169.254.169.254/token") },
		want: pingOnly,
	}, {
		name: "realm on a link-local host, in IPv6 clothes",
		kind: Blocked,
		set:  func(s *stage) { registry(s, "https://[::ffff:a9fe:a9fe]/token") },
		want: pingOnly,
	}, {
		name: "realm on a name that leads to the metadata service",
		kind: Blocked,
		set: func(s *stage) {
			s.names.answers["auth.test"] = []string{"169.254.169.254"}
			registry(s, "https://"+s.auth.host+"/token")
		},
		want: pingOnly,
	}, {
		name: "realm on a loopback host that is not named",
		kind: Blocked,
		set: func(s *stage) {
			s.settings.AllowLoopback = false
			registry(s, "https://"+s.auth.host+"/token")
		},
		want: pingOnly,
	}, {
		name: "realm on a registry that is for another namespace",
		kind: Blocked,
		set: func(s *stage) {
			s.settings.Registries = append(s.settings.Registries, Registry{Host: s.auth.host, Namespaces: []string{"team-b"}})
			registry(s, "https://"+s.auth.host+"/token")
		},
		want: pingOnly,
	}, {
		name: "realm with a user in it",
		kind: Blocked,
		set:  func(s *stage) { registry(s, "https://u:p@"+s.auth.host+"/token") },
		want: pingOnly,
	}, {
		name: "realm that is no URL",
		kind: Blocked,
		set:  func(s *stage) { registry(s, "/token") },
		want: pingOnly,
	}, {
		name: "realm of a plain HTTP registry on another host",
		kind: Blocked,
		set: func(s *stage) {
			s.image = ref(s.t, s.plain.host+"/a/p:v1")
			registry(s, "")
			s.plain.serve(challengeBearer("https://" + s.auth.host + "/token"))
		},
		want: func(s *stage) map[*server][]string { return map[*server][]string{s.plain: {"GET /v2/"}} },
	}, {
		name: "token endpoint redirects to another host",
		kind: Blocked,
		set: func(s *stage) {
			registry(s, "https://"+s.auth.host+"/token")
			s.auth.serve(redirect("https://" + s.evil.host + "/token"))
		},
		want: func(s *stage) map[*server][]string {
			return map[*server][]string{s.registry: {"GET /v2/"}, s.auth: {"GET /token USER"}}
		},
	}, {
		name: "token endpoint redirects an identity token",
		kind: Blocked,
		set: func(s *stage) {
			k, err := ParseDockerConfigJSON(s.settings.Key, "s", fmt.Appendf(nil, `{"auths":{%q:{"identitytoken":%q}}}`, s.registry.host, s.password))
			if err != nil {
				panic(err)
			}
			all, err := k.For(s.image)
			if err != nil {
				panic(err)
			}
			s.credential = all.Candidates()[0]
			registry(s, "https://"+s.auth.host+"/token")
			s.auth.serve(redirect("https://" + s.evil.host + "/token"))
		},
		want: func(s *stage) map[*server][]string {
			return map[*server][]string{s.registry: {"GET /v2/"}, s.auth: {"POST /token refresh " + s.password}}
		},
	}, {
		name: "the realm changes to another host, which tokenHosts does not list, when a token is refused",
		kind: Blocked,
		set: func(s *stage) {
			s.settings.Registries[0].TokenHosts = []string{s.auth.host}
			registry(s, "")
			s.registry.serve(routes(map[string]http.HandlerFunc{
				"/v2/": challengeBearer("https://" + s.auth.host + "/token"), manifestPath: challengeBearer("https://" + s.evil.host + "/token"),
			}))
		},
		want: func(s *stage) map[*server][]string {
			return map[*server][]string{s.registry: {"GET /v2/", "HEAD " + manifestPath + " Bearer TOKEN"}, s.auth: {"GET /token USER"}}
		},
	}, {
		name: "a challenge of two schemes prefers bearer",
		set: func(s *stage) {
			registry(s, "https://"+s.auth.host+"/token")
			s.registry.serve(routes(map[string]http.HandlerFunc{
				"/v2/": func(w http.ResponseWriter, _ *http.Request) {
					w.Header().Add("WWW-Authenticate", `Basic realm="x"`)
					w.Header().Add("WWW-Authenticate", `Bearer service="s",realm="https://`+s.auth.host+`/token"`)
					w.WriteHeader(http.StatusUnauthorized)
				}, manifestPath: found,
			}))
		},
		want: func(s *stage) map[*server][]string {
			return map[*server][]string{s.registry: {"GET /v2/", "HEAD " + manifestPath + " Bearer TOKEN"}, s.auth: {"GET /token USER"}}
		},
	}}
}
