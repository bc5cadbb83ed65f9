package v1alpha1

// The severities of findings. A document with an error is not used.
const (
	SeverityError   = "error"
	SeverityWarning = "warning"
)

// The reasons of findings beside ReasonInvalid and ReasonNotVerifiable.
const (
	ReasonRequired          = "Required"          // something is missing
	ReasonDuplicate         = "Duplicate"         // something is there twice
	ReasonUnknownField      = "UnknownField"      // no field of that name
	ReasonUnknownKind       = "UnknownKind"       // a kind that stile does not read
	ReasonUnknownAPIVersion = "UnknownAPIVersion" // a known kind in a group or version that it is not of
	ReasonSyntax            = "Syntax"            // the text is not YAML, JSON or UTF-8
	ReasonNoEffect          = "NoEffect"          // what is written changes nothing
	ReasonNotRecommended    = "NotRecommended"    // allowed, and probably a mistake
	ReasonNotAllowed        = "NotAllowed"        // the operator's configuration forbids it
)

// Finding is one fault of a document.
type Finding struct {
	// Field is the path of the field, as spec.vmConfig.env[2].name; empty for the whole document.
	Field string `json:"field"`
	// Severity is SeverityError or SeverityWarning.
	Severity string `json:"severity"`
	// Reason is one word for programs.
	Reason string `json:"reason"`
	// Message says what is wrong and what to do. It repeats no credential.
	Message string `json:"message"`
}

// HasErrors reports whether any finding is an error.
func HasErrors(findings []Finding) bool {
	for _, f := range findings {
		if f.Severity == SeverityError {
			return true
		}
	}
	return false
}
