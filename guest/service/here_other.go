//go:build !linux && !darwin && !windows

package service

import "errors"

// Here knows no way on this system.
func Here(string, []string, string) (Unit, error) {
	return Unit{}, errors.New("Carrel knows no way to have this system start it: run `carrel daemon run` from what starts things here")
}
