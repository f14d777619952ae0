// Package proxy lets a guest's programs out where the agent cannot steer their
// connections: they are told by their environment to use a proxy on the
// loopback, and each connection that they ask it for becomes a stream to the
// host, which decides about it. It speaks HTTP (CONNECT, and requests for http
// URLs) and SOCKS 5 on one port.
//
// A program that does not use it reaches nothing; that is the wall's affair and
// not this package's. The proxy decides nothing about hosts.
//
// Where the loopback is not the guest's own, other programs of the machine can
// connect too. So nobody is served without the password that is made for each
// Proxy; the name with it is the task's.
package proxy
