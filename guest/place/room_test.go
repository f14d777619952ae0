package place

import (
	"errors"
	"math"
	"path/filepath"
	"testing"
)

func TestRoom(t *testing.T) {
	dir := t.TempDir()
	floor := func(n int64) *int64 { return &n }
	free, least, err := Room(dir, floor(0))
	if err != nil || free <= 0 || least != 0 {
		t.Fatalf("%d, %d, %v", free, least, err)
	}
	full := (*NoRoomError)(nil)
	_, least, err = Room(dir, floor(math.MaxInt64))
	if !errors.As(err, &full) || !errors.Is(err, ErrNoRoom) || full.Dir != dir || full.Free <= 0 || least != math.MaxInt64 {
		t.Errorf("%v", err)
	}
	if _, _, err := Room(filepath.Join(dir, "not there"), nil); err == nil || errors.Is(err, ErrNoRoom) {
		t.Errorf("a folder that is not there: %v", err)
	}
}

func TestFloor(t *testing.T) {
	for total, want := range map[int64]int64{0: 0, 200 << 20: 10 << 20, 20 << 30: 1 << 30, 4 << 40: 1 << 30} {
		if got := Floor(total); got != want {
			t.Errorf("of %d bytes: %d, want %d", total, got, want)
		}
	}
}
