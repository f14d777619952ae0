package share

import (
	"os"
	"time"
)

// Info is what the host said of one entry at one moment. Dev, Ino, Size, Mtime
// and Ctime together tell whether an entry is still the one that was seen; on a
// host without inode numbers Dev and Ino are 0.
type Info struct {
	Dev, Ino uint64
	// Size is in bytes.
	Size int64
	// Mode has the type and the permission bits.
	Mode         os.FileMode
	Nlink        uint32
	Mtime, Ctime time.Time
}

// Same says whether nothing shows that the entry was changed between the two.
func (i Info) Same(j Info) bool {
	return i.Dev == j.Dev && i.Ino == j.Ino && i.Size == j.Size && i.Mode == j.Mode && i.Mtime.Equal(j.Mtime) && i.Ctime.Equal(j.Ctime)
}

// PreImages keeps what a guest is about to change in a share that it may write
// to, so that it can be undone.
type PreImages interface {
	// Keep is called before the first change of the entry at path since the
	// last Session, and before the guest has its answer; an error refuses the
	// change, and is the guest's ENOSPC. is nil if nothing is there. open opens
	// a regular file for reading, whatever has become of its name; of a symbolic
	// link it gives the target. It is not called after Keep has returned.
	//
	// A folder that is renamed is kept with all that is in it, and what then is
	// below its new name is told name by name if there was something. Below a name
	// where nothing was, nothing was: what is changed there is told as that.
	Keep(path string, is *Info, open func() (Reader, error)) error
}

// Reader is an open regular file.
type Reader interface {
	ReadAt(p []byte, off int64) (int, error)
	Close() error
}
