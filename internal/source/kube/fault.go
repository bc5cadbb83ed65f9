package kube

import (
	"context"
	"errors"
	"fmt"
	"net"
	"syscall"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
)

// describe says in words of our own why a request to the API server failed. What the server, a webhook or
// a proxy wrote is not repeated: it may quote what was asked for.
func describe(err error) string {
	var status apierrors.APIStatus
	var number syscall.Errno
	var network net.Error
	switch {
	case err == nil:
		return ""
	case apierrors.IsForbidden(err):
		return "forbidden (403)"
	case apierrors.IsUnauthorized(err):
		return "unauthorized (401)"
	case apierrors.IsNotFound(err):
		return "not found (404)"
	case errors.As(err, &status):
		return fmt.Sprintf("the API server answered %d", status.Status().Code)
	case errors.Is(err, context.DeadlineExceeded):
		return "the API server did not answer in time"
	case errors.As(err, &number):
		return "the API server cannot be reached: " + number.Error()
	case errors.As(err, &network) && network.Timeout():
		return "the API server did not answer in time"
	}
	return "the API server cannot be reached"
}

// refused reports whether err says that the API server knows us and does not let us: that will not change by asking at
// another time, but by somebody giving the right. One that does not know us (401) says nothing of what is asked for.
func refused(err error) bool { return apierrors.IsForbidden(err) }

// answered reports whether the API server said err, and not merely that it is busy.
func answered(err error) bool {
	var status apierrors.APIStatus
	return errors.As(err, &status) && !apierrors.IsTooManyRequests(err)
}
