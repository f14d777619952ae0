package seatbelt

import (
	"slices"
	"testing"
)

func TestFamily(t *testing.T) {
	all := []process{
		{0, 0, 0}, {1, 0, 1}, {5, 0, 0}, // the kernel's
		{50, 1, 50}, {60, 50, 60}, // the user's shell and a job of it
		{100, 50, 100},                                    // the guest's first process
		{101, 100, 100}, {102, 100, 102}, {103, 102, 102}, // a helper, a task and its child
		{104, 1, 102},   // an orphan in the task's group
		{105, 104, 105}, // its child, in a group of its own
		{106, 1, 106},   // a daemon: not found
		{107, 1, 105},   // an orphan of that group
		{109, 108, 110}, // before its parent in the list
		{108, 107, 50},  // what no kernel lets be: a child in the shell's group
		{111, 1, 110},   // in the group of a leader that has ended
	}
	if got, want := family(all, 100), []int{100, 101, 102, 103, 104, 105, 107, 108, 109, 111}; !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
	if got := family(nil, 100); !slices.Equal(got, []int{100}) {
		t.Errorf("%v", got)
	}
}
