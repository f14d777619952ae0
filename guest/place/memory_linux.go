package place

import (
	"fmt"
	"os"
	"strings"
)

// Memory returns how much memory programs can get before this machine swaps, and
// how much it has, in bytes: MemAvailable and MemTotal of proc_meminfo(5).
func Memory() (available, total int64, err error) {
	b, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0, 0, err
	}
	return parseMemory(string(b))
}

func parseMemory(text string) (available, total int64, err error) {
	for line := range strings.Lines(text) {
		for name, to := range map[string]*int64{"MemAvailable:": &available, "MemTotal:": &total} {
			var kib int64
			if n, _ := fmt.Sscanf(line, name+" %d kB", &kib); n == 1 && kib > 0 && kib < 1<<50 {
				*to = kib << 10
			}
		}
	}
	if available == 0 || total == 0 {
		return 0, 0, fmt.Errorf("/proc/meminfo does not say how much memory there is")
	}
	return available, total, nil
}
