package images

import (
	"bytes"
	"io"
	"strings"
	"testing"

	"github.com/u-root/u-root/pkg/cpio"
)

func TestInitrd(t *testing.T) {
	agent := strings.Repeat("agent", 1001) // not a multiple of four
	write := func() []byte {
		var b bytes.Buffer
		if err := writeInitrd(&b, strings.NewReader(agent), int64(len(agent))); err != nil {
			t.Fatal(err)
		}
		return b.Bytes()
	}
	a := write()
	if !bytes.Equal(a, write()) {
		t.Error("two initrds of the same agent differ")
	}
	records, err := cpio.ReadAllRecords(cpio.Newc.Reader(bytes.NewReader(a)))
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]cpio.Record{}
	var order []string
	for _, r := range records {
		got[r.Name] = r
		order = append(order, r.Name)
		if r.UID != 0 || r.GID != 0 || r.MTime != 0 {
			t.Errorf("%s: uid %d, gid %d, mtime %d", r.Name, r.UID, r.GID, r.MTime)
		}
	}
	if s := strings.Join(order, " "); s != "dev dev/console proc sys init" {
		t.Errorf("initrd holds %s", s)
	}
	if c := got["dev/console"]; c.Mode != cpio.S_IFCHR|0o600 || c.Rmajor != 5 || c.Rminor != 1 {
		t.Errorf("console: %v", c)
	}
	init := got["init"]
	b, err := io.ReadAll(io.NewSectionReader(init, 0, int64(init.FileSize)))
	if err != nil || string(b) != agent || init.Mode != cpio.S_IFREG|0o755 {
		t.Errorf("init: mode %o, %d bytes, %v", init.Mode, len(b), err)
	}
	// An agent that is shorter than was said makes no initrd.
	if err := writeInitrd(io.Discard, strings.NewReader(agent), int64(len(agent))+1); err == nil {
		t.Error("an agent that is too short was accepted")
	}
}
