package callers

import (
	"errors"
	"net/http"
	"os"
	"strings"
	"testing"

	"k8s.io/client-go/rest"

	"github.com/stileproject/stile/internal/kubetest"
)

func TestMain(m *testing.M) { os.Exit(kubetest.Main(m, kubetest.Options{})) }

const roles = `
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: { name: callers-stile }
roleRef: { apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: "system:auth-delegator" }
subjects: [{ kind: ServiceAccount, name: stile, namespace: NS }]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: { name: callers-reader }
rules: [{ nonResourceURLs: [/stile.dev/api/v1/plugins], verbs: [get] }]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: { name: callers-reader }
roleRef: { apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: callers-reader }
subjects: [{ kind: ServiceAccount, name: operator, namespace: NS }]
`

func TestOnlyWhoMayIsAdmitted(t *testing.T) {
	t.Parallel()
	api := kubetest.API(t)
	namespace := api.Namespace(t)
	stile := api.ServiceAccount(t, namespace, "stile")
	operator := api.ServiceAccount(t, namespace, "operator")
	stranger := api.ServiceAccount(t, namespace, "stranger")
	api.Apply(t, nil, strings.ReplaceAll(roles, "NS", namespace))
	mayAsk, err := New(stile)
	if err != nil {
		t.Fatal(err)
	}
	mayNotAsk, err := New(stranger)
	if err != nil {
		t.Fatal(err)
	}
	other := errors.New("any other error")
	for name, row := range map[string]struct {
		callers      *Callers
		method, path string
		as           *rest.Config
		want         error
	}{
		"its role allows it":           {mayAsk, "GET", "/api/v1/plugins", operator, nil},
		"HEAD is GET":                  {mayAsk, "HEAD", "/api/v1/plugins", operator, nil},
		"another path":                 {mayAsk, "GET", "/api/v1/proofs", operator, ErrForbidden},
		"another verb":                 {mayAsk, "POST", "/api/v1/plugins", operator, ErrForbidden},
		"a known user without a role":  {mayAsk, "GET", "/api/v1/plugins", stranger, ErrForbidden},
		"no token":                     {mayAsk, "GET", "/api/v1/plugins", &rest.Config{}, ErrUnknown},
		"a token of nobody":            {mayAsk, "GET", "/api/v1/plugins", &rest.Config{BearerToken: "CANARY-nobody"}, ErrUnknown},
		"stile may not ask: a refusal": {mayNotAsk, "GET", "/api/v1/plugins", operator, other},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for range 2 { // the second is answered from memory
				r, err := http.NewRequestWithContext(t.Context(), row.method, "https://stile.example"+row.path, nil)
				if err != nil {
					t.Fatal(err)
				}
				if row.as.BearerToken != "" {
					r.Header.Set("Authorization", "Bearer "+row.as.BearerToken)
				}
				got := row.callers.Admit(r)
				if errors.Is(row.want, other) && got != nil && !errors.Is(got, ErrUnknown) && !errors.Is(got, ErrForbidden) {
					continue
				}
				if !errors.Is(got, row.want) {
					t.Errorf("want %v, got %v", row.want, got)
				}
			}
		})
	}
}
