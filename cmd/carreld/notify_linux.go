package main

import (
	"fmt"
	"net"
	"os"
)

// notify tells the service manager that started us, if one did and wants to
// know, that we serve (sd_notify(3)).
func notify() error {
	name := os.Getenv("NOTIFY_SOCKET")
	if name == "" {
		return nil
	}
	os.Unsetenv("NOTIFY_SOCKET") // it is of no use to those that we start
	c, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: name, Net: "unixgram"})
	if err == nil {
		defer c.Close()
		_, err = c.Write([]byte("READY=1"))
	}
	if err != nil {
		return fmt.Errorf("tell the service manager that the daemon serves: %w", err)
	}
	return nil
}
