// Package names gives each host name that a task looks up an address of its
// own, and remembers which, so that a connection to that address is a
// connection to that name. It answers the guest's DNS queries from this table
// and never asks anybody: what a name is, and whether it may be reached, is
// found out on the host when something connects.
package names
