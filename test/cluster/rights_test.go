package cluster

import "strings"

// allow gives stile's account its rights.
func (c *cluster) allow() {
	c.Helper()
	c.api.Apply(c.T, nil, strings.ReplaceAll(rights, "NS", c.system))
}

const rights = `
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: { name: NS-stile }
roleRef: { apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: cluster-admin }
subjects: [{ kind: ServiceAccount, name: stile, namespace: NS }]
`
