// Package document turns the text of YAML and JSON files into typed objects. Its one
// rule: every fault of a file is told at once, with its place, and no text of a
// stranger can do more harm than a finding.
package document

// Document is one document of a file.
type Document struct {
	// File is the name as it was given; Index counts the file's documents from 0, empty ones included.
	File  string
	Index int
	// Line is where the document begins, counted from 1.
	Line                              int
	Kind, APIVersion, Namespace, Name string
	// Object is a *v1alpha1.WasmPlugin, *v1alpha1.Config, *Secret or *Gateway; nil for other
	// kinds, and where the text could not be read at all. It may be present beside errors.
	Object any
	// Findings are the faults of the document, in the order of its fields.
	Findings []Finding
}

// Finding is one fault of a document, as a ValidationReport shows it.
type Finding struct {
	File      string `json:"file"`
	Document  int    `json:"document"`
	Line      int    `json:"line,omitempty"`
	Kind      string `json:"kind"`
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	Field     string `json:"field"`
	Severity  string `json:"severity"`
	Reason    string `json:"reason"`
	Message   string `json:"message"`
}

// Read splits and reads a file.
func Read(file string, data []byte) []Document { return nil }
