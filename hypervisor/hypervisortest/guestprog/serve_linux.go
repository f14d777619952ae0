package main

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"

	"golang.org/x/sys/unix"

	"github.com/carrel-vm/carrel/hypervisor/hypervisortest/guestport"
)

// serve does what the port promises.
func (g *guest) serve(port uint32, c net.Conn) {
	defer c.Close()
	switch port {
	case guestport.Echo:
		io.Copy(c, c)
		closeWrite(c)
	case guestport.Sink:
		h := sha256.New()
		if _, err := io.Copy(h, c); err == nil {
			c.Write(h.Sum(nil))
		}
	case guestport.Source:
		var n [8]byte
		if _, err := io.ReadFull(c, n[:]); err != nil {
			return
		}
		io.CopyN(c, new(guestport.Stream), int64(binary.BigEndian.Uint64(n[:])))
		closeWrite(c)
		io.Copy(io.Discard, c) // until the host has it all
	case guestport.Stall:
		select {}
	case guestport.HangUp:
	}
}

func closeWrite(c net.Conn) {
	if h, ok := c.(interface{ CloseWrite() error }); ok {
		h.CloseWrite()
	}
}

// serveProcess speaks the test driver's protocol: descriptor boot is the one
// stream to the host, and each message on descriptor call brings the stream
// of one Dial, with the port as 4 bytes, big endian.
func serveProcess(args []string) error {
	flags := flag.NewFlagSet("serve", flag.ContinueOnError)
	bootFD := flags.Int("boot-fd", -1, "the boot stream")
	callFD := flags.Int("call-fd", -1, "where streams arrive")
	if err := flags.Parse(args); err != nil {
		return err
	}
	boot, err := fileConn(*bootFD)
	if err != nil {
		return err
	}
	g := guest{dial: func(uint32) (net.Conn, error) { return nil, errors.New("the test driver has one boot stream") }}
	go g.receive(*callFD)
	return g.obey(boot)
}

func (g *guest) receive(callFD int) {
	for {
		var port [4]byte
		oob := make([]byte, unix.CmsgSpace(4))
		n, oobn, _, _, err := unix.Recvmsg(callFD, port[:], oob, unix.MSG_CMSG_CLOEXEC)
		if err == unix.EINTR {
			continue
		}
		if err != nil || n == 0 {
			return
		}
		msgs, err := unix.ParseSocketControlMessage(oob[:oobn])
		if err != nil || len(msgs) != 1 {
			continue
		}
		fds, err := unix.ParseUnixRights(&msgs[0])
		if err != nil || len(fds) != 1 {
			continue
		}
		c, err := fileConn(fds[0])
		if err != nil {
			continue
		}
		p := binary.BigEndian.Uint32(port[:])
		if p < guestport.Echo || p > guestport.HangUp {
			c.Close()
			continue
		}
		go g.serve(p, c)
	}
}

func fileConn(fd int) (net.Conn, error) {
	if fd < 0 {
		return nil, fmt.Errorf("descriptor %d is not one", fd)
	}
	f := os.NewFile(uintptr(fd), "stream")
	defer f.Close()
	return net.FileConn(f)
}
