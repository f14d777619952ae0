package oci

import (
	"context"
	"crypto/x509"
	"fmt"
)

// Source is where an image comes from: Registry, Layout or Tarball. All go through the same checks.
type Source interface {
	open(ctx context.Context) (origin, error)
}

// origin is an open Source.
type origin interface{}

// RegistryOptions say how a registry is reached. The zero value is right for every public one.
type RegistryOptions struct {
	// PlainHTTP allows HTTP without TLS, and only to a registry on this host's loopback.
	PlainHTTP bool
	// RootCAs replaces the system's roots of trust.
	RootCAs *x509.CertPool
}

// Registry is an image in a registry: python:3.13, ghcr.io/me/it@sha256:…. Credentials come from the
// user's docker config and its credential helpers.
func Registry(ref string, opt RegistryOptions) Source { return notYet("registry") }

// Layout is an image in an OCI image layout, a folder. tag chooses by org.opencontainers.image.ref.name
// or by digest, and may be empty where the folder holds one image.
func Layout(dir, tag string) Source { return notYet("layout") }

// Tarball is an image in a file that docker save, podman save or skopeo wrote: an OCI layout or a
// docker archive in a tar, plain or compressed by gzip or zstd. It must hold one image (of a platform).
func Tarball(path string) Source { return notYet("tarball") }

type notYet string

func (n notYet) open(context.Context) (origin, error) {
	return nil, fmt.Errorf("images from a %s: %w yet", string(n), ErrUnsupported)
}
