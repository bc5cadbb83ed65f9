package sandbox

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/protobuf/types/known/durationpb"
)

const (
	maxFetch     = 32 << 20 // Envoy's limit of a remote module
	firstRetry   = time.Second
	slowestRetry = 30 * time.Second
)

// fetch gets a remote module through its cluster, and hands the result to the loop.
func (s *Sandbox) fetch(source *corev3.RemoteDataSource, then func([]byte, error)) {
	endpoint, err := s.endpoint(source.GetHttpUri().GetCluster())
	ctx := s.ctx
	s.group.Go(func() error {
		var module []byte
		if err == nil {
			module, err = fetchModule(ctx, endpoint, source)
		}
		s.post(ctx, func() {
			if err == nil {
				s.modules[source.GetSha256()] = module
			}
			then(module, err)
		})
		return nil
	})
}

// fetchToCache fetches for the next update, unless that is under way.
func (s *Sandbox) fetchToCache(source *corev3.RemoteDataSource) {
	sum := source.GetSha256()
	if s.fetching[sum] {
		return
	}
	s.fetching[sum] = true
	s.fetch(source, func(_ []byte, err error) {
		delete(s.fetching, sum)
		if err != nil {
			s.log.Warn("module not fetched", "sha256", sum, "err", err)
		}
	})
}

// endpoint returns host:port of a cluster's first endpoint. Any goroutine may ask.
func (s *Sandbox) endpoint(name string) (string, error) {
	c := (*s.clusters.Load())[name]
	if c == nil {
		return "", fmt.Errorf("cluster %q is not known", name)
	}
	if c.GetTransportSocket() != nil {
		return "", fmt.Errorf("cluster %q speaks TLS, the sandbox proxy does not", name)
	}
	return firstEndpoint(c)
}

func firstEndpoint(c *clusterv3.Cluster) (string, error) {
	for _, locality := range c.GetLoadAssignment().GetEndpoints() {
		for _, e := range locality.GetLbEndpoints() {
			if a := e.GetEndpoint().GetAddress().GetSocketAddress(); a != nil {
				return net.JoinHostPort(a.GetAddress(), strconv.FormatUint(uint64(a.GetPortValue()), 10)), nil
			}
		}
	}
	return "", fmt.Errorf("cluster %q has no endpoint with an IP address", c.GetName())
}

// fetchModule tries as often as the source says. Errors name no URL: it is a capability.
func fetchModule(ctx context.Context, endpoint string, source *corev3.RemoteDataSource) ([]byte, error) {
	retries := uint32(1)
	if n := source.GetRetryPolicy().GetNumRetries(); n != nil {
		retries = n.GetValue()
	}
	delay := durationOr(source.GetRetryPolicy().GetRetryBackOff().GetBaseInterval(), firstRetry)
	slowest := durationOr(source.GetRetryPolicy().GetRetryBackOff().GetMaxInterval(), slowestRetry)
	for try := uint32(0); ; try++ {
		module, err := fetchOnce(ctx, endpoint, source)
		if err == nil || try >= retries {
			return module, err
		}
		timer := time.NewTimer(delay)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return nil, ctx.Err()
		}
		delay = min(2*delay, slowest)
	}
}

func durationOr(d *durationpb.Duration, otherwise time.Duration) time.Duration {
	if d == nil {
		return otherwise
	}
	return d.AsDuration()
}

func fetchOnce(ctx context.Context, endpoint string, source *corev3.RemoteDataSource) ([]byte, error) {
	target, err := url.Parse(source.GetHttpUri().GetUri())
	if err != nil {
		return nil, errors.New("the module's URI cannot be read")
	}
	ctx, cancel := context.WithTimeout(ctx, source.GetHttpUri().GetTimeout().AsDuration())
	defer cancel()
	host := target.Host
	target.Scheme, target.Host = "http", endpoint // the cluster says where, the URI says what
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, target.String(), nil)
	if err != nil {
		return nil, errors.New("the module's URI cannot be asked for")
	}
	req.Host = host
	transport := &http.Transport{DisableKeepAlives: true, DisableCompression: true}
	resp, err := transport.RoundTrip(req)
	if err != nil {
		return nil, fmt.Errorf("fetch module from %s: %w", endpoint, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("fetch module from %s: %s", endpoint, resp.Status)
	}
	module, err := io.ReadAll(io.LimitReader(resp.Body, maxFetch+1))
	if err != nil {
		return nil, fmt.Errorf("fetch module from %s: %w", endpoint, err)
	}
	if len(module) > maxFetch {
		return nil, fmt.Errorf("fetch module from %s: it is larger than the 32 MiB that a proxy takes", endpoint)
	}
	if sum := sha256.Sum256(module); hex.EncodeToString(sum[:]) != source.GetSha256() {
		return nil, fmt.Errorf("fetch module from %s: its sha256 is %x, the configuration says %s", endpoint, sum, source.GetSha256())
	}
	return module, nil
}
