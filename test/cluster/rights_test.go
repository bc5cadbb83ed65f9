package cluster

import (
	"os"
	"strings"

	"sigs.k8s.io/yaml"
)

// object is a document of deploy/install.yaml.
type object = map[string]any

// allow gives stile's account the rights that deploy/install.yaml gives it, and no more.
// Cluster-wide roles get names of their own, for clusters of several stories are one.
func (c *cluster) allow() {
	c.Helper()
	text, err := os.ReadFile("../../deploy/install.yaml")
	if err != nil {
		c.Fatal(err)
	}
	roles := 0
	for _, document := range strings.Split(strings.ReplaceAll(string(text), "stile-system", c.system), "\n---\n") {
		var o object
		if err := yaml.Unmarshal([]byte(document), &o); err != nil {
			c.Fatal(err)
		}
		kind, _ := o["kind"].(string)
		switch kind {
		case "ClusterRole", "ClusterRoleBinding":
			rename(o["metadata"], c.system)
			rename(o["roleRef"], c.system)
		case "Role", "RoleBinding":
		default:
			continue
		}
		roles++
		own, err := yaml.Marshal(o)
		if err != nil {
			c.Fatal(err)
		}
		c.api.Apply(c.T, nil, string(own))
	}
	if roles < 6 {
		c.Fatalf("deploy/install.yaml has %d roles and bindings: the test reads it wrongly", roles)
	}
}

func rename(of any, prefix string) {
	if o, ok := of.(object); ok {
		o["name"] = prefix + "-" + o["name"].(string)
	}
}

// maySecrets lets stile read Secrets of a namespace by name, as the chart does for each
// of secrets.namespaces.
func (c *cluster) maySecrets(namespace string) {
	c.Helper()
	c.api.Apply(c.T, nil, strings.NewReplacer("TENANT", namespace, "SYSTEM", c.system).Replace(`
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: { name: stile, namespace: TENANT }
rules: [{ apiGroups: [""], resources: [secrets], verbs: [get, watch] }]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: { name: stile, namespace: TENANT }
roleRef: { apiGroup: rbac.authorization.k8s.io, kind: Role, name: stile }
subjects: [{ kind: ServiceAccount, name: stile, namespace: SYSTEM }]
`))
}
