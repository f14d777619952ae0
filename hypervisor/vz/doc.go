// Package vz makes guests with macOS' Virtualization.framework: a machine without
// a network card, whose kernel the framework starts directly, and which lives in
// the process that made it and ends with it.
//
// What a guest gets is decided in MakePlan, a function of plain data, and how it
// lives in VM, over an interface of a few calls; both are tested on every system.
// Only the files for macOS with cgo name the framework, and translate.
//
// None of it has run on a Mac yet: docs/platforms.md says what was proven, and how.
package vz
