// Package egresstest is a small internet for tests: a network namespace with a
// name server, a certificate authority, web servers, package registries, a git
// server, an API and an attacker, at addresses that look public, joined by one
// cable to another namespace in which the processes under test run. Nothing of
// it reaches, or is reached by, the machine's own network; every packet on the
// cable is counted. The processes under test find it as they find the real one,
// through /etc/resolv.conf and the host's certificates, so that they are the
// released ones, without a hook for tests.
package egresstest
