package place

import (
	"os"
	"path/filepath"
	"testing"
)

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

// What a control group leaves of the machine's memory, itself and those above it.
func TestMemoryOfGroups(t *testing.T) {
	root := t.TempDir()
	group := func(name string, files map[string]string) {
		if err := os.MkdirAll(filepath.Join(root, name), 0o700); err != nil {
			t.Fatal(err)
		}
		for f, text := range files {
			if err := os.WriteFile(filepath.Join(root, name, f), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	group("a", map[string]string{"memory.max": "1000\n", "memory.high": "max\n", "memory.current": "700\n", "memory.stat": "anon 5\ninactive_file 200\nactive_file 9\n"})
	group("a/b", map[string]string{"memory.max": "max\n", "memory.high": "max\n", "memory.current": "600\n"})
	group("a/high", map[string]string{"memory.max": "800\n", "memory.high": "650\n", "memory.current": "600\n"})
	group("a/over", map[string]string{"memory.max": "100\n", "memory.current": "600\n"})
	group("odd", map[string]string{"memory.max": "x\n", "memory.current": "-1\n"})
	for own, want := range map[string][2]int64{
		"0::/\n":                  {4000, 9000},
		"0::/a\n":                 {500, 1000},
		"1:cpu:/x\n0::/a/b\n":     {500, 1000}, // the one above it counts
		"0::/a/high\n":            {50, 650},
		"0::/a/over\n":            {0, 100},
		"0::/odd\n":               {4000, 9000},
		"0::/nothing/there\n":     {4000, 9000},
		"0::/../../elsewhere\n":   {4000, 9000},
		"12:memory:/docker/abc\n": {4000, 9000},
		"":                        {4000, 9000},
	} {
		if available, total := withinGroups(root, own, 4000, 9000); available != want[0] || total != want[1] {
			t.Errorf("%q: %d of %d, want %v", own, available, total, want)
		}
	}
}
