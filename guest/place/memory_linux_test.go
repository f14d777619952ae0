package place

import "testing"

func TestMemory(t *testing.T) {
	available, total, err := Memory()
	if err != nil || available <= 0 || total < available {
		t.Errorf("%d of %d: %v", available, total, err)
	}
	available, total, err = parseMemory("MemTotal:       24683580 kB\nMemFree:  1 kB\nMemAvailable:   22581024 kB\n")
	if err != nil || available != 22581024<<10 || total != 24683580<<10 {
		t.Errorf("%d of %d: %v", available, total, err)
	}
	for _, text := range []string{"", "MemTotal: 5 kB\n", "MemTotal: -5 kB\nMemAvailable: 5 kB\n", "MemTotal: 99999999999999999999 kB\nMemAvailable: x kB\n"} {
		if _, _, err := parseMemory(text); err == nil {
			t.Errorf("%q says something", text)
		}
	}
}
