package egress

import (
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/carrel-vm/carrel/guest/policy"
	"github.com/carrel-vm/carrel/guest/wire"
)

// open reads the stream's first frame, and not a byte more.
func (c *conn) open() error {
	c.client.SetReadDeadline(time.Now().Add(openTimeout))
	defer c.client.SetReadDeadline(time.Time{})
	o, err := readOpen(c.client)
	if err != nil {
		return err
	}
	c.task, c.port = taskID(o.Task), o.Port
	host, err := policy.ParseHost(o.Host)
	switch {
	case err != nil:
		c.host = text(strconv.QuoteToASCII(c.s.hide(o.Host)), 256)
	case o.Port == 0 || o.Port > 65535:
		c.host = host.String()
	default:
		c.host, c.dest = host.String(), policy.Destination{Host: host, Port: uint16(o.Port)}
	}
	return nil
}

// readOpen reads one frame byte for byte until its length is known, so that
// what follows stays in the socket, where it can be spliced from.
func readOpen(r io.Reader) (*wire.Open, error) {
	var head [2]byte // maxOpen fits a varint of two bytes
	n := 0
	for ; n == 0 || head[n-1]&0x80 != 0; n++ {
		if n == len(head) {
			return nil, fmt.Errorf("the first frame is longer than %d bytes", maxOpen)
		}
		if _, err := io.ReadFull(r, head[n:n+1]); err != nil {
			return nil, err
		}
	}
	size, _ := protowire.ConsumeVarint(head[:n])
	if size > maxOpen {
		return nil, fmt.Errorf("the first frame is longer than %d bytes", maxOpen)
	}
	b := make([]byte, size)
	if _, err := io.ReadFull(r, b); err != nil {
		return nil, cut(err)
	}
	o := &wire.Open{}
	if err := proto.Unmarshal(b, o); err != nil {
		return nil, err
	}
	return o, nil
}

// taskID returns s if it has the form of a task's id (a ULID), else nothing.
func taskID(s string) string {
	if len(s) != 26 || strings.Trim(s, "0123456789ABCDEFGHJKMNPQRSTVWXYZ") != "" {
		return ""
	}
	return s
}
