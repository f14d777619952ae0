package selftest

import (
	"os"
	"time"

	"github.com/carrel-vm/carrel/agent/uevent"
)

// deviceEvents asks the kernel to tell of a device again, and hears it.
func deviceEvents() (string, error) {
	s, err := uevent.Open()
	if err != nil {
		return "", err
	}
	defer s.Close()
	if err := os.WriteFile("/sys/class/mem/null/uevent", []byte("change"), 0); err != nil {
		return "", err
	}
	return "", s.Next(time.Now().Add(30 * time.Second))
}
