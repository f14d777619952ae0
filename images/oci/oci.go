// Package oci fetches images of the OCI and Docker kinds, keeps their blobs by digest, and makes one EROFS file system of an image's layers.
//
// Registries, archives and layers are hostile: every length, count, name and digest is bounded and
// checked before it is used. No path of an image ever touches the host's file system. A layer's tar
// becomes entries of a tree in memory and contents in one unnamed spool file, and these become the
// EROFS file; so a link, a device node, a name with two dots, a drive letter or a name that differs
// from another in case only is nothing but bytes in that file, on every host.
//
// A folder of blobs holds:
//
//	blobs/sha256/<hex>   one blob, complete and verified, or absent
//	partial/             downloads that were cut off, by digest; taken up again by the next one
//	tmp/                 spools under way; what is found there without a living process is rubbish
//	lock                 shared by those who fetch and write roots, exclusive to Prune
package oci

import (
	"errors"
	"path/filepath"
)

// Errors of this package; each is wrapped with what was tried, on what, and what would mend it.
var (
	// ErrNotFound says that there is no such image, tag, platform or blob.
	ErrNotFound = errors.New("not found")
	// ErrDamaged says that bytes are not what their digest says: on disk, in an archive, or from a registry.
	ErrDamaged = errors.New("does not match its digest")
	// ErrMalformed says that a manifest, config or layer is not what the OCI image specification allows.
	ErrMalformed = errors.New("malformed image")
	// ErrTooBig says that an image passes one of its Limits.
	ErrTooBig = errors.New("image passes a limit")
	// ErrDenied says that a registry wants other credentials, or none would do.
	ErrDenied = errors.New("access denied")
	// ErrUnsupported says that the image is sound and of a kind that is not handled here.
	ErrUnsupported = errors.New("not supported")
)

// Blobs is a content-addressed store in one folder. A blob is complete or absent, verified when it
// is written and again when it is used. Its methods may be called from many goroutines and processes at once.
type Blobs struct {
	dir     string   // absolute
	through Unpacker // nil: layers are parsed in this process
}

// Open returns the store in dir, which is made at the first Fetch.
func Open(dir string) *Blobs {
	if abs, err := filepath.Abs(dir); err == nil {
		dir = abs
	}
	return &Blobs{dir: dir}
}

// Platform names what an image runs on, in Go's words: linux, amd64. Variant may be empty.
type Platform struct{ OS, Arch, Variant string }

func (p Platform) String() string {
	s := p.OS + "/" + p.Arch
	if p.Variant != "" {
		s += "/" + p.Variant
	}
	return s
}

// Progress is one step of a Fetch or a WriteRoot. Step is "resolve", "download" or "unpack"; Done and
// Total count bytes, and Total is 0 where nobody knows. Calls come one at a time, at most some tens a
// second, and must not block for long.
type Progress struct {
	Step        string
	Done, Total int64
}

// Image is one image for one platform, checked: every field is within the bounds of limits.go.
type Image struct {
	Ref      string // as the user gave it; empty if it was loaded by digest
	Digest   string // sha256:… of the manifest, which pins everything else
	Platform Platform
	Config   Config
	Layers   []Layer // lowest first; one at least
}

// Layer is one blob of an image.
type Layer struct {
	Digest    string // sha256:… of the blob
	DiffID    string // sha256:… of the tar in it
	MediaType string
	Size      int64 // bytes of the blob
}

// Config is what an image says about running it. It is the image author's word: bounded, free of
// NUL, and otherwise to be judged where it is used. Env entries are KEY=VALUE with a key.
type Config struct {
	Entrypoint, Cmd, Env []string
	User, WorkingDir     string
	StopSignal           string
	Labels               map[string]string
}

// Stats say what a root holds.
type Stats struct {
	Entries    int   // names in the root, with directories
	Content    int64 // bytes of files' contents
	Unpacked   int64 // bytes of all layers' tars
	ImageBytes int64 // size of the EROFS file
}

// Freed says what Prune has removed, or with dry would have.
type Freed struct {
	Blobs    int   // complete blobs
	Partials int   // downloads that were cut off, and spools that nobody uses
	Bytes    int64 // of both
}
