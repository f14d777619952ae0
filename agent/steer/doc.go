// Package steer makes every TCP connection and DNS query of a network
// namespace that has no way out arrive at this process, as if it were the
// whole Internet. Programs need to know nothing of it.
//
// The namespace has only loopback. A route says that every IPv4 address is
// local, and then one of two makes this process answer for those that are not
// really:
//
//   - sk_lookup: a small BPF program that chooses the socket for a packet
//     (Documentation/bpf/prog_sk_lookup.rst). Nothing is translated or tracked.
//   - nftables, where BPF may not be loaded: connections are redirected.
//
// Other protocols go nowhere and fail at once. There is no IPv6 route, so IPv6
// fails at once too. What is really local, loopback and addresses that somebody
// gives to devices of the namespace later, is left alone.
package steer
