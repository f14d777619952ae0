package egress

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/wire"
)

// Refusals say why in the connection's own protocol.
func TestRefusalsExplain(t *testing.T) {
	w := newWorld(t, nil)
	const why = "carrel: egress to evil.example:80 is not allowed (carrel allow box evil.example:80)"
	c := w.open("evil.example", 80)
	req, _ := http.NewRequest("POST", "http://evil.example/x", strings.NewReader(strings.Repeat("x", 64<<10)))
	go req.Write(c)
	res, err := http.ReadResponse(bufio.NewReader(c), req)
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(res.Body)
	if err != nil || res.StatusCode != 403 || !strings.HasPrefix(res.Status, "403 "+why) || !strings.HasPrefix(string(body), why) || strings.Count(string(body), "\n") != 1 {
		t.Errorf("%q, %q, %v", res.Status, body, err)
	}
	c.Close()

	for _, speak := range []string{"", "SSH-2.0-OpenSSH_9.2\r\n"} {
		port := uint32(22)
		if speak != "" {
			port = 2222
		}
		c = w.open("evil.example", port)
		io.WriteString(c, speak)
		b, err := io.ReadAll(c)
		text, perr := sshDisconnect(b)
		if err != nil || perr != nil || !strings.HasPrefix(text, fmt.Sprintf("carrel: egress to evil.example:%d is not allowed (carrel allow box evil.example:%[1]d)", port)) {
			t.Errorf("%q, %v, %v", b, err, perr)
		}
		c.Close()
	}

	tc := tls.Client(w.open("evil.example", 443), &tls.Config{ServerName: "evil.example"})
	if err := tc.Handshake(); err == nil || !strings.Contains(err.Error(), "access denied") {
		t.Errorf("TLS: %v", err)
	}
	tc.Close()
	if ev := w.last(); ev.Verdict.Cure != "carrel allow box evil.example" {
		t.Errorf("cure %q", ev.Verdict.Cure)
	}
	// A deny rule is not cured by another allow rule.
	w.configure(anyRule(api.EgressAction_EGRESS_ACTION_DENY, "evil.example"))
	w.open("evil.example", 443).CloseWrite()
	w.seen("a denial by a rule", func(ev *api.EgressEvent) bool { return isDenied(ev) && ev.Verdict.Rule != nil && ev.Verdict.Cure == "" })

	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.lines) < 4 || !strings.HasPrefix(w.lines[0], why) {
		t.Errorf("%q", w.lines)
	}
	for _, l := range w.lines {
		if l != wire.Text(l, wire.MaxText) {
			t.Errorf("%q is not one plain line", l)
		}
	}
}

// sshDisconnect reads a banner and one unencrypted packet: RFC 4253.
func sshDisconnect(b []byte) (string, error) {
	rest, ok := bytes.CutPrefix(b, []byte("SSH-2.0-carrel\r\n"))
	if !ok || len(rest) < 5 {
		return "", errors.New("no banner")
	}
	n, pad := int(binary.BigEndian.Uint32(rest)), int(rest[4])
	if n+4 != len(rest) || len(rest)%8 != 0 || pad < 4 || pad+1 > n {
		return "", fmt.Errorf("a packet of %d bytes with %d of padding in %d", n, pad, len(rest))
	}
	p := rest[5 : 4+n-pad]
	if p[0] != 1 || binary.BigEndian.Uint32(p[1:]) != 1 {
		return "", errors.New("not a disconnect message")
	}
	l := int(binary.BigEndian.Uint32(p[5:]))
	if 9+l+4 != len(p) {
		return "", errors.New("its text has another length")
	}
	return string(p[9 : 9+l]), nil
}
