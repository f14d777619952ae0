// Package link is what a keeper and its guest's egress process say to each
// other, over a socket pair that the daemon made when it started both. The
// keeper hands over the guest's streams; the egress process hands back what the
// guest is told. When either end is gone, so is the guest's way out.
package link
