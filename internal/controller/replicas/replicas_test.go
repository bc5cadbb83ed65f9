package replicas

import (
	"context"
	"fmt"
	"os"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	"github.com/stileproject/stile/internal/kubetest"
	"github.com/stileproject/stile/internal/source"
)

func TestMain(m *testing.M) { os.Exit(kubetest.Main(m, kubetest.Options{})) }

var auth = source.Key{Namespace: "team-a", Name: "auth"}

// rights are all that the package says it needs.
const rights = `
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: { name: replicas, namespace: %[1]s }
rules:
  - apiGroups: [""]
    resources: [configmaps]
    verbs: [get, list, watch, create, update, delete]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: { name: replicas, namespace: %[1]s }
roleRef: { apiGroup: rbac.authorization.k8s.io, kind: Role, name: replicas }
subjects: [{ kind: ServiceAccount, name: stile, namespace: %[1]s }]
`

// replica runs until the returned function is called.
func replica(t *testing.T, as *rest.Config, namespace, name string, own map[source.Key]Counts) (*Replicas, context.CancelFunc) {
	t.Helper()
	r, err := New(Config{
		REST: as, Namespace: namespace, Name: name,
		Own: func() map[source.Key]Counts { return own },
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := r.Run(ctx); err != nil {
			t.Error(err)
		}
	}()
	end := func() { cancel(); <-done }
	t.Cleanup(end)
	return r, end
}

func TestReplicasCountEachOthersProxies(t *testing.T) {
	t.Parallel()
	api := kubetest.API(t)
	namespace := api.Namespace(t)
	as := api.ServiceAccount(t, namespace, "stile")
	api.Apply(t, nil, fmt.Sprintf(rights, namespace))
	a, _ := replica(t, as, namespace, "a", map[source.Key]Counts{auth: {Matched: 2, Sent: 2, Accepted: 1, Rejected: 1}})
	_, endB := replica(t, as, namespace, "b", map[source.Key]Counts{auth: {Matched: 10, Sent: 10, Accepted: 10}})
	c, _ := replica(t, as, namespace, "c", nil)
	sees := func(r *Replicas, want Counts) {
		t.Helper()
		kubetest.Eventually(t, func() string {
			if got := r.Others(auth); got != want {
				return fmt.Sprintf("others: %+v, want %+v", got, want)
			}
			return ""
		})
	}
	sees(a, Counts{Matched: 10, Sent: 10, Accepted: 10})
	sees(c, Counts{Matched: 12, Sent: 12, Accepted: 11, Rejected: 1})
	endB()
	sees(a, Counts{})
	sees(c, Counts{Matched: 2, Sent: 2, Accepted: 1, Rejected: 1})
}

func TestAReplicaThatFellSilentCountsNoMore(t *testing.T) {
	t.Parallel()
	told := 0
	r := &Replicas{cfg: Config{Name: "a", Changed: func() { told++ }}, met: make(chan struct{}, 1), others: map[string]*other{}}
	packed, err := pack(map[source.Key]Counts{auth: {Matched: 1}})
	if err != nil {
		t.Fatal(err)
	}
	r.hear(&corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "stile-replica-b", ResourceVersion: "1"}, BinaryData: map[string][]byte{dataKey: packed}})
	if r.Others(auth).Matched != 1 || told != 1 {
		t.Fatalf("others: %+v, told %d times", r.Others(auth), told)
	}
	r.add(time.Now().Add(lost - time.Second))
	if r.Others(auth).Matched != 1 {
		t.Error("it is forgotten too soon")
	}
	r.add(time.Now().Add(lost + time.Second))
	if r.Others(auth).Matched != 0 {
		t.Error("it counts though it has not renewed")
	}
}

func FuzzUnpack(f *testing.F) {
	packed, err := pack(map[source.Key]Counts{auth: {Matched: 1}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(packed)
	f.Add([]byte("\x1f\x8b"))
	f.Fuzz(func(t *testing.T, data []byte) {
		counts, err := unpack(data)
		if err == nil && counts == nil {
			t.Error("neither counts nor an error")
		}
	})
}
