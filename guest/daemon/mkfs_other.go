//go:build !linux

package daemon

import (
	"context"
	"os"
	"runtime"

	"github.com/carrel-vm/carrel/guest/daemon/emptydisk"
)

// makeDisk makes of an empty file a disk with an empty file system, as mkfs makes
// it on Linux: neither Windows nor macOS brings such a program. Windows takes a
// virtual disk, macOS the bytes as they are.
func makeDisk(_ context.Context, f *os.File, mib uint32) error {
	size := int64(mib) << 20
	return emptydisk.Make(f, emptydisk.Options{
		Size: size, Reserved: int64(float64(size) * reserved(mib) / 100), Journal: int64(journalMiB(mib)) << 20,
		Raw: runtime.GOOS != "windows",
	})
}
