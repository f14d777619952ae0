//go:build !linux

package main

import "errors"

var errNotHere = errors.New("this host has no such process of Carrel yet (Linux has)")

func runConfined([]string) error { return errNotHere }
