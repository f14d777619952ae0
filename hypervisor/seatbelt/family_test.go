package seatbelt

import (
	"maps"
	"slices"
	"testing"
)

func TestFamily(t *testing.T) {
	all := []process{
		{0, 0, 0, 1}, {1, 0, 1, 1}, {5, 0, 0, 1}, // the kernel's
		{50, 1, 50, 1}, {60, 50, 60, 1}, // the user's shell and a job of it
		{100, 50, 100, 1},                                          // the guest's first process
		{101, 100, 100, 1}, {102, 100, 102, 1}, {103, 102, 102, 1}, // a helper, a task and its child
		{104, 1, 102, 1},   // an orphan in the task's group
		{105, 104, 105, 1}, // its child, in a group of its own
		{106, 1, 106, 1},   // a daemon: not found
		{107, 1, 105, 1},   // an orphan of that group
		{109, 108, 110, 1}, // before its parent in the list
		{108, 107, 50, 1},  // what no kernel lets be: a child in the shell's group
		{111, 1, 110, 1},   // in the group of a leader that has ended
		{120, 1, 120, 1},   // a daemon that was seen before it left
		{121, 1, 121, 2},   // another that has the number of one that was seen
	}
	seen := map[int]int64{100: 1, 120: 1, 121: 1, 130: 1}
	want := []int{100, 101, 102, 103, 104, 105, 107, 108, 109, 111, 120}
	if got := slices.Sorted(maps.Keys(family(all, seen))); !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
	if got := family(nil, seen); len(got) != 0 {
		t.Errorf("%v", got)
	}
}
