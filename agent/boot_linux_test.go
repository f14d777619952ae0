package agent

import (
	"testing"

	"golang.org/x/sys/unix"
)

func TestEndOf(t *testing.T) {
	for name, tc := range map[string]struct {
		words []string
		want  int
	}{
		"nothing is said": {nil, unix.LINUX_REBOOT_CMD_RESTART},
		"power-off":       {[]string{"quiet", powerOffWord}, unix.LINUX_REBOOT_CMD_POWER_OFF},
		"another word":    {[]string{powerOffWord + "x", "carrel.end="}, unix.LINUX_REBOOT_CMD_RESTART},
	} {
		if got := endOf(tc.words); got != tc.want {
			t.Errorf("%s: %#x, want %#x", name, got, tc.want)
		}
	}
}
