package chart

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.yaml.in/yaml/v3"
)

var update = flag.Bool("update", false, "write what is generated: go test ./... -update, in test/chart")

// golden compares a generated file with what is in the tree.
func golden(t *testing.T, path, got string) {
	t.Helper()
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s is not what is generated (cd test/chart && go test . -update writes it):\n%s", path, diff)
	}
}

// The chart's README has every value, with its comment and its default.
func TestReadmeIsTheValues(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile(filepath.Join(chartFolder, "values.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	var doc yaml.Node
	if err := yaml.Unmarshal(text, &doc); err != nil {
		t.Fatal(err)
	}
	var rows strings.Builder
	valueRows(t, &rows, "", doc.Content[0])
	golden(t, filepath.Join(chartFolder, "README.md"), fmt.Sprintf(readme, rows.String()))
}

// valueRows writes one row for each value that has a comment, and looks into maps that have none or whose values have some.
func valueRows(t *testing.T, b *strings.Builder, prefix string, node *yaml.Node) {
	t.Helper()
	for i := 0; i+1 < len(node.Content); i += 2 {
		key, value := node.Content[i], node.Content[i+1]
		name := prefix + key.Value
		comment := strings.TrimSpace(strings.ReplaceAll(strings.TrimPrefix(lastParagraph(key.HeadComment), "# "), "\n# ", " "))
		if value.Kind == yaml.MappingNode && len(value.Content) > 0 && comment == "" {
			valueRows(t, b, name+".", value)
			continue
		}
		if comment == "" {
			t.Errorf("values.yaml: %s has no comment", name)
		}
		fmt.Fprintf(b, "| `%s` | %s | %s |\n", name, code(flow(t, value)), strings.ReplaceAll(comment, "|", "\\|"))
	}
}

// lastParagraph leaves out what the file says of itself.
func lastParagraph(comment string) string {
	parts := strings.Split(comment, "\n\n")
	return parts[len(parts)-1]
}

// flow is a value on one line.
func flow(t *testing.T, value *yaml.Node) string {
	t.Helper()
	one := *value
	if one.Kind != yaml.ScalarNode {
		one.Style = yaml.FlowStyle
	}
	one.HeadComment, one.LineComment, one.FootComment = "", "", ""
	for _, c := range one.Content {
		c.Style |= yaml.FlowStyle
	}
	text, err := yaml.Marshal(&one)
	if err != nil {
		t.Fatal(err)
	}
	return strings.Join(strings.Fields(string(text)), " ")
}

func code(s string) string {
	if s == `""` {
		return ""
	}
	return "`" + s + "`"
}

const readme = `# The chart stile

<!-- The table is made from values.yaml: cd test/chart && go test . -update -->

    helm install stile oci://ghcr.io/stileproject/charts/stile --namespace stile-system --create-namespace

[docs/install.md](../../docs/install.md) goes through it: certificates, pull secrets, proxies, upgrades, uninstalling.
[docs/operations.md](../../docs/operations.md) is for afterwards. What the accounts may do is one table, [charts/rbac](../rbac/rbac.go).

| value | default | |
|---|---|---|
%s
Whatever else is given is refused by values.schema.json.
`
