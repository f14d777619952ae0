package share

import "testing"

func TestPlaceholderMarks(t *testing.T) {
	for flags, want := range map[uint32]bool{0: false, 0x40000000: true, 0x40000020: true, 0x20: false, 0x80000: false, 0x20000000: false, ^uint32(0x40000000): false} {
		if dataless(flags) != want {
			t.Errorf("flags %#x: %v", flags, !want)
		}
	}
	for attributes, want := range map[uint32]bool{
		0: false, 0x20: false, 0x10: false, 0x400: false, 0x80: false, 0x1000: true, 0x40000: true, 0x400000: true, 0x401620: true, 0x100000: false, 0x80000: false,
	} {
		if recalled(attributes) != want {
			t.Errorf("attributes %#x: %v", attributes, !want)
		}
	}
}
