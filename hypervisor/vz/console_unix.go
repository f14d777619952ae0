//go:build unix

package vz

import "golang.org/x/sys/unix"

func readFD(fd int, p []byte) (int, error) { return unix.Read(fd, p) }
