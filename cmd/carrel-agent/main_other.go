//go:build !linux

// Command carrel-agent runs inside a guest, and guests are Linux.
package main

import (
	"fmt"
	"os"
)

func main() {
	fmt.Fprintln(os.Stderr, "carrel-agent runs inside a guest and is built for Linux only: GOOS=linux go build ./cmd/carrel-agent")
	os.Exit(2)
}
