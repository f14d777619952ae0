package egress

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"strings"
	"time"
)

// accessDenied is a TLS alert record: fatal, access_denied (RFC 8446, 6.2). Of
// all alerts it is the one that tools show as what it is.
var accessDenied = []byte{recordAlert, 3, 3, 0, 2, 2, 49}

// refuse says no: to whoever watches, to the task, and to the tool in the
// protocol that it speaks. spoken is what was read of the connection. No reset
// may follow the message, or the tool would not see it: so the end is sent, and
// what still comes is read and thrown away.
func (c *conn) refuse(ctx context.Context, no *refusal, spoken []byte) {
	if no.failed {
		c.sayFailed(no)
	} else {
		c.sayRefused(no)
	}
	if len(spoken) == 0 && c.port != 22 {
		spoken = make([]byte, 512)
		c.client.SetReadDeadline(time.Now().Add(sniffTimeout))
		n, _ := c.client.Read(spoken)
		spoken = spoken[:n]
	}
	why := "refused"
	if no.failed {
		why = no.reason
	}
	message := refusalMessage(spoken, c.port, no.failed, c.line(no))
	c.client.SetWriteDeadline(time.Now().Add(drainTimeout))
	if _, err := c.client.Write(message); err != nil || closeWrite(c.client) != nil {
		c.close(why)
		return
	}
	c.client.SetReadDeadline(time.Now().Add(drainTimeout))
	io.CopyN(io.Discard, c.client, maxDrain)
	c.close(why)
}

// refusalMessage is what a client that began with spoken is told; nil where its
// protocol is not known.
// A server that could not be reached has no word in TLS: it looks as it is.
func refusalMessage(spoken []byte, port uint32, failed bool, line string) []byte {
	switch {
	case startsTLS(spoken) && failed:
		return nil
	case startsTLS(spoken):
		return accessDenied
	case bytes.HasPrefix(spoken, []byte("SSH-")), len(spoken) == 0 && port == 22:
		return sshRefusal(line)
	}
	if method, ok := httpMethod(spoken); ok {
		status := 403
		if failed {
			status = 502
		}
		return httpRefusal(method, status, line)
	}
	return nil
}

// httpMethod returns the method of what looks like a request of HTTP/1.
func httpMethod(b []byte) (string, bool) {
	word, _, ok := bytes.Cut(b, []byte(" "))
	if !ok || len(word) < 3 || len(word) > 20 || strings.Trim(string(word), "ABCDEFGHIJKLMNOPQRSTUVWXYZ") != "" || string(word) == "PRI" {
		return "", false
	}
	return string(word), true
}

// httpRefusal has the reason twice: npm and apt show the phrase, curl and git
// the body.
func httpRefusal(method string, status int, line string) []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "HTTP/1.1 %d %s\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: %d\r\nCache-Control: no-store\r\nConnection: close\r\n\r\n", status, line, len(line)+1)
	if method != "HEAD" {
		b.WriteString(line + "\n")
	}
	return b.Bytes()
}

// sshRefusal is a server's banner and a disconnect message in clear: RFC 4253, 6
// and 11.1. Clients print its text.
func sshRefusal(line string) []byte {
	const disconnect, notAllowed = 1, 1
	payload := []byte{disconnect}
	payload = binary.BigEndian.AppendUint32(payload, notAllowed)
	payload = binary.BigEndian.AppendUint32(payload, uint32(len(line)))
	payload = append(payload, line...)
	payload = binary.BigEndian.AppendUint32(payload, 0) // the language: none
	// Length, padding's length, payload and padding are a multiple of 8, with at
	// least 4 bytes of padding.
	pad := 8 - (4+1+len(payload))%8
	if pad < 4 {
		pad += 8
	}
	b := []byte("SSH-2.0-carrel\r\n")
	b = binary.BigEndian.AppendUint32(b, uint32(1+len(payload)+pad))
	b = append(b, byte(pad))
	b = append(b, payload...)
	return append(b, make([]byte, pad)...)
}
