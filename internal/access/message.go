package access

import (
	"fmt"
	"strings"

	"github.com/stileproject/stile/internal/oci"
)

const maxRetryAfter = oci.MaxRetryAfter

// message says in a sentence what is behind an answer, with the names of the caller's
// own Secrets: others who share the entry have theirs.
func message(r Request, e *entry, a *answer) string {
	if a.reason == reasonTagGone {
		return tagGone(e.image())
	}
	if a.reason == reasonTooMany {
		return fmt.Sprintf("%s was resolved, but there may be no further proofs (access.maxPerNamespace, access.maxProofs)", e.image())
	}
	if a.tried == nil {
		return ""
	}
	own := r.Credentials.Candidates()
	var parts []string
	for _, t := range *a.tried {
		parts = append(parts, t.describe(e.image().Host(), own[t.candidate].Origin()))
	}
	text := e.image().String() + ": " + strings.Join(parts, "; ")
	if a.state == Denied && a.reason == reasonUnauthorized {
		if r.Credentials.Anonymous() {
			return text + ": give a pull secret whose account may read it"
		}
		return text + ": check the password and the rights of that account"
	}
	if a.state == Denied && a.reason == reasonNotFound {
		return text + ": check the name, and that the account may see it"
	}
	return text
}

// describe says what one candidate got.
func (t try) describe(host, origin string) string {
	if origin == "" {
		origin = "a request without credentials"
	}
	switch {
	case t.result == granted:
		return fmt.Sprintf("%s lets %s read it", host, origin)
	case t.reason == reasonNotAllowed:
		return t.detail
	case t.result == refused && !t.sent:
		return fmt.Sprintf("%s refused the account of %s (%d) for another image, and is not asked for each", host, origin, t.status)
	case t.result == refused:
		return fmt.Sprintf("%s answered %d to %s", host, t.status, origin)
	case t.status != 0:
		return fmt.Sprintf("%s gave %s no answer that counts (%d)", host, origin, t.status)
	default:
		return t.detail
	}
}

func tagGone(image oci.Reference) string {
	return fmt.Sprintf("the tag of %s is gone; what it named may still be read", image)
}
