// Package hypervisortest holds what every driver is tested with: a conformance
// suite with its own guest program, and a driver without a machine that runs
// the real agent as an ordinary process.
package hypervisortest
