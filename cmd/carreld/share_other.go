//go:build !linux

package main

import "errors"

var errNotHere = errors.New("this host has no hypervisor that Carrel can drive yet (Linux with QEMU has)")

func runShare() error { return errNotHere }

func runConfined([]string) error { return errNotHere }
