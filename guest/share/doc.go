// Package share serves one host folder to one guest in the Linux FUSE wire format, and touches nothing outside that folder.
//
// The guest is hostile: its kernel sends the messages, so no name, number or order in them is taken on trust, and
// whatever the guest's kernel would normally check (a name without a slash, a handle that was issued) is checked here.
//
// How a request goes, in five steps:
//
//  1. The carrier (virtio-fs or a stream) calls ServeSegments or Serve with one message and room for one reply.
//  2. Header, arguments and names are copied once out of memory that the guest can still change; the payload of a WRITE
//     and the room of a READ stay where they are and are handed to the host's kernel as they lie.
//  3. The node id becomes a path below the root: a tree of (parent, name) that only this package writes.
//  4. check decides, on that path, whether the share's rules allow the action. There is no other place that decides.
//  5. The backend does it with the same path, without following a link anywhere: openat2 on Linux, os.Root elsewhere.
//
// The messages are little endian and carry Linux numbers (errno, open flags, mode bits) on every host.
//
// Sources: include/uapi/linux/fuse.h and fs/fuse of Linux 6.12 (protocol 7.41, of which 7.31 to 7.38 is spoken here).
package share
