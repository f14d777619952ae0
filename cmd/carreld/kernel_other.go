//go:build !linux

package main

import "errors"

func buildKernel([]string) error {
	return errors.New("kernels are built on Linux, with Debian's tools")
}
