//go:build !linux && !darwin

// Command carrel-agent runs inside a guest, and guests are Linux, or processes of macOS.
package main

import (
	"fmt"
	"os"
)

func main() {
	fmt.Fprintln(os.Stderr, "carrel-agent runs inside a guest and is built for Linux only: GOOS=linux go build ./cmd/carrel-agent")
	os.Exit(2)
}
