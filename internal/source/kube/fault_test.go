package kube

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"syscall"
	"testing"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/stileproject/stile/internal/canary"
	"github.com/stileproject/stile/internal/source"
)

// Whatever the API server, a webhook or a proxy writes into an error, it is not repeated; and only a plain no is one.
func TestP3_FaultsAreInOurOwnWords(t *testing.T) {
	t.Parallel()
	w := canary.Watch(t)
	leak := errors.New(w.Credential())
	secrets := schema.GroupResource{Resource: "secrets"}
	for _, test := range []struct {
		err     error
		want    string
		refused bool
	}{
		{apierrors.NewForbidden(secrets, "regcred", leak), "forbidden (403)", true},
		{fmt.Errorf("get: %w", apierrors.NewForbidden(secrets, "regcred", leak)), "forbidden (403)", true},
		{apierrors.NewUnauthorized(leak.Error()), "unauthorized (401)", false},
		{apierrors.NewNotFound(secrets, leak.Error()), "not found (404)", false},
		{apierrors.NewInternalError(leak), "the API server answered 500", false},
		{apierrors.NewTooManyRequests(leak.Error(), 1), "the API server answered 429", false},
		{apierrors.NewGenericServerResponse(502, "get", secrets, "regcred", leak.Error(), 0, true), "the API server answered 502", false},
		{&url.Error{Op: "Get", URL: "https://robot:" + leak.Error() + "@api/", Err: &net.OpError{Op: "dial", Err: os.NewSyscallError("connect", syscall.ECONNREFUSED)}},
			"the API server cannot be reached: connection refused", false},
		{&url.Error{Op: "Get", URL: "https://api/" + leak.Error(), Err: context.DeadlineExceeded}, "the API server did not answer in time", false},
		{leak, "the API server cannot be reached", false},
	} {
		if got := describe(test.err); got != test.want || refused(test.err) != test.refused {
			t.Errorf("describe: %q, want %q; refused %v, want %v", got, test.want, refused(test.err), test.refused)
		}
		w.Errors(&Unread{Key: source.Key{Namespace: "team-a", Name: "regcred"}, Refused: refused(test.err), fault: describe(test.err)})
	}
	if describe(nil) != "" {
		t.Error("no error has a description")
	}
}
