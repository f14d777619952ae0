package oci

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
)

// RegistryOptions say how a registry is reached. The zero value is right for every public one.
type RegistryOptions struct {
	// PlainHTTP allows HTTP without TLS, and only to a registry on this host's loopback.
	PlainHTTP bool
	// RootCAs replaces the system's roots of trust.
	RootCAs *x509.CertPool
}

// Registry is an image in a registry: python:3.13, ghcr.io/me/it@sha256:…. Credentials come from the
// user's docker config and its credential helpers.
func Registry(ref string, opt RegistryOptions) Source { return registry{ref, opt} }

func (r registry) String() string { return r.ref }

type registry struct {
	ref string
	opt RegistryOptions
}

// remote is one repository of a registry. References, credentials and the token dance are
// go-containerregistry's; requests for blobs are ours, since its own know nothing of ranges.
type remote struct {
	ref    name.Reference
	client *http.Client
	base   *http.Transport

	mu    sync.Mutex
	etags map[string]string // of blobs, while this is open
}

func (r registry) open(ctx context.Context, _ string) (origin, error) {
	if len(r.ref) > maxRef {
		return nil, fmt.Errorf("%w: a reference of %d bytes", ErrMalformed, len(r.ref))
	}
	var opts []name.Option
	if r.opt.PlainHTTP {
		opts = append(opts, name.Insecure)
	}
	ref, err := name.ParseReference(r.ref, opts...)
	if err != nil {
		return nil, fmt.Errorf("%w: %w (NAME[:TAG][@sha256:…], with the registry's host before it if it is not Docker's)", ErrMalformed, err)
	}
	reg := ref.Context().Registry
	auth, err := authn.Resolve(ctx, authn.DefaultKeychain, ref.Context())
	if err != nil {
		return nil, fmt.Errorf("credentials for %s: %w (see ~/.docker/config.json and the helper that it names)", reg, err)
	}
	o := &remote{ref: ref, etags: map[string]string{}, base: newTransport(reg.RegistryStr(), r.opt)}
	guard := &guarded{next: o.base, registry: reg.RegistryStr(), plain: r.opt.PlainHTTP}
	var rt http.RoundTripper
	err = retry(ctx, func() (err error) {
		rt, err = transport.NewWithContext(ctx, reg, auth, guard, []string{ref.Scope(transport.PullScope)})
		return classify(ctx, err)
	})
	if err != nil {
		o.close()
		return nil, fmt.Errorf("registry %s: %w", reg, err)
	}
	o.client = &http.Client{Transport: rt, CheckRedirect: func(req *http.Request, via []*http.Request) error {
		if len(via) >= 10 {
			return errors.New("more than 10 redirects")
		}
		return nil // guarded judges where it leads
	}}
	return o, nil
}

func (o *remote) close() { o.base.CloseIdleConnections() }

func (o *remote) root(ctx context.Context) (raw []byte, pinned string, err error) {
	if d, ok := o.ref.(name.Digest); ok {
		pinned = d.DigestStr()
		if _, err := checkDigest(pinned); err != nil {
			return nil, "", err
		}
	}
	err = retry(ctx, func() error {
		raw, err = o.manifest(ctx, o.ref.Identifier())
		return err
	})
	return raw, pinned, err
}

func (o *remote) manifest(ctx context.Context, id string) ([]byte, error) {
	resp, err := o.get(ctx, "manifests", id, http.Header{"Accept": append(append([]string(nil), manifestTypes...), indexTypes...)})
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if err := transport.CheckError(resp, http.StatusOK); err != nil {
		return nil, classify(ctx, err)
	}
	raw, err := io.ReadAll(io.LimitReader(resp.Body, maxManifest+1))
	if err != nil {
		return nil, classify(ctx, err)
	}
	if len(raw) > maxManifest {
		return nil, fmt.Errorf("%w: a manifest of more than %d bytes", ErrTooBig, maxManifest)
	}
	said := resp.Header.Get("Docker-Content-Digest")
	if strings.HasPrefix(said, "sha256:") && said != digestOf(raw) {
		return nil, fmt.Errorf("the registry says manifest %s and sends %s: %w", clip(said), digestOf(raw), ErrDamaged)
	}
	return raw, nil
}

func (o *remote) blob(ctx context.Context, d descriptor, off int64) (io.ReadCloser, int64, error) {
	if isManifest(d.MediaType) {
		raw, err := o.manifest(ctx, d.Digest)
		return io.NopCloser(strings.NewReader(string(raw))), 0, err
	}
	h := http.Header{}
	o.mu.Lock()
	etag := o.etags[d.Digest]
	o.mu.Unlock()
	if off > 0 {
		h.Set("Range", fmt.Sprintf("bytes=%d-", off))
		if etag != "" {
			h.Set("If-Range", etag) // another file by now: all of it, please
		}
	}
	resp, err := o.get(context.WithValue(ctx, endless{}, true), "blobs", d.Digest, h)
	if err != nil {
		return nil, 0, err
	}
	at, err := begins(resp, off, d.Size)
	now := resp.Header.Get("ETag")
	if err == nil && at > 0 && etag != "" && now != "" && now != etag {
		err = errRange
	}
	o.mu.Lock()
	o.etags[d.Digest] = ""
	if strings.HasPrefix(now, `"`) { // a weak one does not speak of bytes (RFC 9110, 13.1.5)
		o.etags[d.Digest] = now
	}
	o.mu.Unlock()
	if err == nil {
		return resp.Body, at, nil
	}
	resp.Body.Close()
	if errors.Is(err, errRange) && off > 0 {
		return o.blob(ctx, d, 0)
	}
	return nil, 0, classify(ctx, err)
}

// errRange says that an answer to a Range request makes no sense; without one there will be none.
var errRange = errors.New("the registry's range is not the one asked for")

// begins checks the head of an answer and tells at which byte it begins (RFC 9110, 14.4 and 15.3.7).
func begins(resp *http.Response, off, size int64) (int64, error) {
	switch resp.StatusCode {
	case http.StatusOK:
		if resp.ContentLength >= 0 && resp.ContentLength != size {
			return 0, fmt.Errorf("the registry has %d bytes instead of %d: %w", resp.ContentLength, size, ErrDamaged)
		}
		return 0, nil
	case http.StatusPartialContent:
		if off == 0 || resp.Header.Get("Content-Range") != fmt.Sprintf("bytes %d-%d/%d", off, size-1, size) ||
			(resp.ContentLength >= 0 && resp.ContentLength != size-off) {
			return 0, errRange
		}
		return off, nil
	case http.StatusRequestedRangeNotSatisfiable:
		return 0, errRange
	}
	return 0, transport.CheckError(resp, http.StatusOK)
}

func (o *remote) get(ctx context.Context, kind, id string, h http.Header) (*http.Response, error) {
	repo := o.ref.Context()
	url := fmt.Sprintf("%s://%s/v2/%s/%s/%s", repo.Scheme(), repo.RegistryStr(), repo.RepositoryStr(), kind, id)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	for k, v := range h {
		req.Header[k] = []string{strings.Join(v, ", ")}
	}
	resp, err := o.client.Do(req)
	if err != nil {
		return nil, classify(ctx, err)
	}
	return resp, nil
}

// classify says of an error of HTTP whether it is final.
func classify(ctx context.Context, err error) error {
	var said *transport.Error
	var dialed net.Error
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case errors.Is(err, errForbidden), errors.Is(err, errTemporary):
		return err
	case errors.As(err, &said):
		switch {
		case said.StatusCode == http.StatusUnauthorized, said.StatusCode == http.StatusForbidden:
			return fmt.Errorf("%w: %w (docker login, or another account)", ErrDenied, err)
		case said.StatusCode == http.StatusNotFound:
			return fmt.Errorf("%w: %w", ErrNotFound, err)
		case said.StatusCode == http.StatusTooManyRequests, said.StatusCode == http.StatusRequestTimeout, said.StatusCode >= 500:
			return fmt.Errorf("%w: %w", errTemporary, err)
		}
		return err
	case errors.As(err, new(*tls.CertificateVerificationError)), errors.As(err, new(tls.RecordHeaderError)):
		return err
	case errors.As(err, &dialed), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, io.EOF):
		return fmt.Errorf("%w: %w", errTemporary, err)
	}
	return err
}

// newTransport reaches the registry wherever its name leads, and every other host that it sends us to only at
// public addresses: a registry may not have this host ask its neighbours (CVE-2026-33990). The address is
// checked as it is dialled.
func newTransport(registry string, opt RegistryOptions) *http.Transport {
	trusted := sync.Map{} // host:port that the user named: the registry, and proxies
	trusted.Store(withPort(registry, "443"), true)
	trusted.Store(withPort(registry, "80"), true)
	open := &net.Dialer{Timeout: 15 * time.Second}
	public := &net.Dialer{Timeout: 15 * time.Second, Control: publicOnly}
	return &http.Transport{
		Proxy: func(req *http.Request) (proxy *url.URL, err error) {
			if proxy, err = http.ProxyFromEnvironment(req); proxy != nil {
				trusted.Store(withPort(proxy.Host, map[string]string{"http": "80", "https": "443", "socks5": "1080"}[proxy.Scheme]), true)
			}
			return proxy, err
		},
		DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			if _, ok := trusted.Load(addr); ok {
				return open.DialContext(ctx, network, addr)
			}
			return public.DialContext(ctx, network, addr)
		},
		TLSClientConfig:        &tls.Config{RootCAs: opt.RootCAs, MinVersion: tls.VersionTLS12},
		TLSHandshakeTimeout:    stall, // a busy machine takes its time, too
		ResponseHeaderTimeout:  stall,
		MaxResponseHeaderBytes: 64 << 10,
		MaxIdleConnsPerHost:    parallel,
		IdleConnTimeout:        stall,
		ForceAttemptHTTP2:      true,
		DisableCompression:     true, // a blob is hashed as it is
	}
}

func withPort(host, port string) string {
	if h, p, err := net.SplitHostPort(host); err == nil {
		if n, err := strconv.Atoi(p); err == nil {
			return net.JoinHostPort(h, strconv.Itoa(n))
		}
	}
	return net.JoinHostPort(strings.Trim(host, "[]"), port)
}
