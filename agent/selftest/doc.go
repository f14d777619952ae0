// Package selftest asks the kernel of a guest for every feature that Carrel and the programs in a guest need,
// by using it, and for those that must not be there.
//
// It runs as root: as the first process of a machine (carrel.selftest=1 on the kernel's command line), or as a
// task (carrel run -u root -- /proc/1/exe selftest). It leaves nothing behind.
package selftest
