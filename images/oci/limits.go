package oci

import "time"

// Limits bound what WriteRoot takes from an image. A zero field means the default.
type Limits struct {
	Bytes   int64 // of all layers' tars together; default 32 GiB
	Content int64 // of files' contents in the spool, also of files that a later layer removes; default 32 GiB
	Entries int   // of all layers' tars together; default 1,000,000
	Ratio   int64 // tar bytes per blob byte of one layer, beyond the first 64 MiB; default 200
}

func (l Limits) orDefault() Limits {
	if l.Bytes <= 0 {
		l.Bytes = 32 << 30
	}
	if l.Content <= 0 {
		l.Content = 32 << 30
	}
	if l.Entries <= 0 {
		l.Entries = 1_000_000
	}
	if l.Ratio <= 0 {
		l.Ratio = 200
	}
	return l
}

// What an image may be, whatever a caller's Limits say.
const (
	maxManifest  = 4 << 20 // bytes of a manifest or index; registries take no larger ones (distribution-spec, "Pushing Manifests")
	maxConfig    = 4 << 20 // bytes of a config
	maxDescs     = 1000    // manifests in an index
	maxIndexes   = 4       // indexes within indexes
	maxLayers    = 512     // layers of an image; overlayfs and docker stop at 127 and 125
	maxBlob      = 32 << 30
	maxRef       = 512       // bytes of a reference
	maxStrings   = 4096      // entries of an Env, Cmd, Entrypoint or Labels
	maxString    = 128 << 10 // bytes of one of them: Linux's MAX_ARG_STRLEN
	maxConfigSum = 1 << 20   // bytes of all strings of a Config

	ratioFloor = 64 << 20  // bytes of a layer's tar that its Ratio does not judge
	maxName    = 255       // bytes of a name: Linux's NAME_MAX
	maxPath    = 4096      // bytes of a path or link target: Linux's PATH_MAX
	maxDepth   = 256       // directories above a name
	maxLinks   = 40        // symbolic links followed for one path, inside the tree: Linux's MAXSYMLINKS
	maxXattrs  = 128       // of one entry
	maxXattr   = 64 << 10  // bytes of one entry's xattrs: Linux's XATTR_SIZE_MAX for one
	maxWindow  = 128 << 20 // bytes of a zstd window: what zstd --ultra -22 uses

	parallel     = 4 // downloads at once
	tries        = 5 // of one request
	firstBackoff = 250 * time.Millisecond
	lastBackoff  = 8 * time.Second
	stall        = time.Minute // without a byte
)
