//go:build !linux

package secret

const insideBus = "CARREL_TEST_INSIDE_BUS"
