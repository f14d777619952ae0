package steer

import "golang.org/x/sys/unix"

// Offsets into struct bpf_sk_lookup (linux/bpf.h). Addresses are in the
// network's byte order, the local port in the processor's.
const (
	ctxFamily    = 8
	ctxProtocol  = 12
	ctxLocalIP4  = 40
	ctxLocalPort = 60
)

// Numbers of the kernel's functions that the program calls (linux/bpf.h).
const (
	callMapLookup = 1
	callSkRelease = 86
	callSkAssign  = 124
)

// Verdicts of an sk_lookup program.
const (
	skDrop = 0
	skPass = 1
)

const portDNS = 53

// program is run for each packet that is delivered in the namespace and has no
// connection yet, and chooses its socket:
//
//	IPv6, or to an address that is really local   as without the program
//	TCP                                            the TCP listener
//	UDP to port 53                                 the DNS socket
//	other UDP                                      none: the sender is told so
//
// It is written out rather than compiled, because it is short, and loaded by
// hand, because a library for it adds a tenth to the start of each command
// under software emulation: the agent is the program that becomes the command.
func program(own, sockets int) []insn {
	const (
		r0 = iota
		r1
		r2
		r3
		_
		_
		ctx
		sock
		kept
		_
		stack
	)
	a := &assembler{}
	a.move(ctx, r1)
	a.load32(r2, ctx, ctxFamily)
	a.jumpUnless(r2, unix.AF_INET, "pass")

	// The key of the trie is at stack-8: the prefix's length, then the address.
	a.load32(r2, ctx, ctxLocalIP4)
	a.store32(stack, -4, r2)
	a.set(r2, 32)
	a.store32(stack, -8, r2)
	a.loadMap(r1, own)
	a.move(r2, stack)
	a.add(r2, -8)
	a.call(callMapLookup)
	a.jumpUnless(r0, 0, "pass")

	a.set(kept, socketTCP)
	a.load32(r2, ctx, ctxProtocol)
	a.jumpIf(r2, unix.IPPROTO_TCP, "choose")
	a.jumpUnless(r2, unix.IPPROTO_UDP, "drop")
	a.load32(r2, ctx, ctxLocalPort)
	a.jumpUnless(r2, portDNS, "drop")
	a.set(kept, socketDNS)

	a.label("choose")
	a.store32(stack, -8, kept)
	a.loadMap(r1, sockets)
	a.move(r2, stack)
	a.add(r2, -8)
	a.call(callMapLookup)
	a.jumpIf(r0, 0, "drop")
	a.move(sock, r0)
	a.move(r1, ctx)
	a.move(r2, sock)
	a.set(r3, 0)
	a.call(callSkAssign)
	a.move(kept, r0)
	a.move(r1, sock)
	a.call(callSkRelease)
	a.jumpUnless(kept, 0, "drop")

	a.label("pass")
	a.set(r0, skPass)
	a.exit()
	a.label("drop")
	a.set(r0, skDrop)
	a.exit()
	return a.finish()
}
