package main

import (
	"encoding/binary"
	"flag"
	"fmt"
	"net"
	"os"

	"golang.org/x/sys/unix"

	"github.com/carrel-vm/carrel/hypervisor/hypervisortest/guestport"
)

// serveProcess speaks the protocol of package passing: descriptor boot is the
// one stream to the host, and descriptor call carries all others. streamed says
// that the messages come as a stream: package seatbelt's carrier.
func serveProcess(args []string, streamed bool) error {
	flags := flag.NewFlagSet("serve", flag.ContinueOnError)
	bootFD := flags.Int("boot-fd", -1, "the boot stream")
	callFD := flags.Int("call-fd", -1, "where streams arrive")
	for _, unused := range []string{"plain-root", "one-user"} {
		flags.Bool(unused, false, "an agent's")
	}
	flags.Int("memory", 0, "an agent's")
	flags.String("dir", "", "an agent's")
	flags.Int("proxy-fd", 0, "an agent's")
	if err := flags.Parse(args); err != nil {
		return err
	}
	boot, err := fileConn(*bootFD)
	if err != nil {
		return err
	}
	answers := make(chan net.Conn)
	g := newGuest(func(port uint32) (net.Conn, error) { // one at a time
		message := binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32(nil, port), 1)
		if _, err := unix.Write(*callFD, message); err != nil {
			return nil, err
		}
		if c := <-answers; c != nil {
			return c, nil
		}
		return nil, unix.ECONNREFUSED
	})
	go receive(g, *callFD, streamed, answers)
	return g.Obey(boot)
}

func receive(g guestport.Guest, callFD int, streamed bool, answers chan<- net.Conn) {
	for {
		var message [8]byte // of a stream one arrives whole, since the host sends it so
		oob := make([]byte, unix.CmsgSpace(4))
		n, oobn, _, _, err := unix.Recvmsg(callFD, message[:], oob, unix.MSG_CMSG_CLOEXEC)
		if err == unix.EINTR {
			continue
		}
		if err != nil || n == 0 {
			return
		}
		c, err := stream(oob[:oobn])
		if err != nil {
			fmt.Println("guestprog:", err)
			return
		}
		if streamed && c != nil {
			if _, err := unix.Write(callFD, make([]byte, len(message))); err != nil { // it has arrived
				return
			}
		}
		if n == len(message) && binary.BigEndian.Uint32(message[4:]) != 0 {
			answers <- c
			continue
		}
		p := binary.BigEndian.Uint32(message[:4])
		if p < guestport.Echo || p > guestport.HangUp {
			c.Close()
			continue
		}
		go g.Serve(p, c)
	}
}

// stream is the one that came with a message, or nil.
func stream(oob []byte) (net.Conn, error) {
	if len(oob) == 0 {
		return nil, nil
	}
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil || len(msgs) != 1 {
		return nil, fmt.Errorf("%d control messages: %v", len(msgs), err)
	}
	fds, err := unix.ParseUnixRights(&msgs[0])
	if err != nil || len(fds) != 1 {
		return nil, fmt.Errorf("%d descriptors: %v", len(fds), err)
	}
	return fileConn(fds[0])
}

func fileConn(fd int) (net.Conn, error) {
	if fd < 0 {
		return nil, fmt.Errorf("descriptor %d is not one", fd)
	}
	f := os.NewFile(uintptr(fd), "stream")
	defer f.Close()
	return net.FileConn(f)
}
