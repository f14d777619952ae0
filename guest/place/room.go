package place

import (
	"errors"
	"fmt"

	"github.com/dustin/go-humanize"
)

// ErrNoRoom is what a NoRoomError is.
var ErrNoRoom = errors.New("the disk is nearly full")

// NoRoomError says that less of a disk is free than has to stay free.
type NoRoomError struct {
	Dir         string
	Free, Floor int64 // bytes
}

func (e *NoRoomError) Error() string {
	return fmt.Sprintf("%s are free on the disk that holds %s; %s have to stay free", humanize.IBytes(uint64(e.Free)), e.Dir, humanize.IBytes(uint64(e.Floor)))
}

// Is implements errors.Is.
func (e *NoRoomError) Is(target error) bool { return target == ErrNoRoom }

// Floor is how many bytes of a disk of that size have to stay free, unless the
// user says otherwise: 1 GiB, or a twentieth of a small disk.
func Floor(total int64) int64 { return min(1<<30, total/20) }

// Room returns how much of the disk that holds dir is free for this user, and
// how much has to be: floor bytes, or Floor of the disk where floor is nil. If
// less is free, the error is a *NoRoomError. dir must exist.
func Room(dir string, floor *int64) (free, least int64, err error) {
	free, total, err := space(dir)
	if err != nil {
		return 0, 0, fmt.Errorf("ask how much is free on the disk that holds %s: %w", dir, err)
	}
	least = Floor(total)
	if floor != nil {
		least = *floor
	}
	if free < least {
		return free, least, &NoRoomError{Dir: dir, Free: free, Floor: least}
	}
	return free, least, nil
}
