// Package secret keeps credentials on the host, and says where each may go and
// how it is added to a request. No value leaves it but into a request's header.
package secret
