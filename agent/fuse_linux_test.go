package agent

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/carrel-vm/carrel/guest/share/rules"
	"github.com/carrel-vm/carrel/guest/wire"
)

// answer is a message as a share server sends it.
func answer(length uint32, unique uint64, body string) []byte {
	b := binary.LittleEndian.AppendUint32(nil, length)
	b = binary.LittleEndian.AppendUint32(b, 0)
	b = binary.LittleEndian.AppendUint64(b, unique)
	return append(b, body...)
}

// FuzzNextMessage: whatever a host sends, what goes to the kernel is messages
// with the length that they say, in the order in which they came, and nothing
// of what is no answer.
func FuzzNextMessage(f *testing.F) {
	f.Add(append(answer(outHeader+2, 7, "ab"), answer(outHeader, 8, "")...))
	f.Add(append(answer(outHeader+4, 0, "note"), answer(outHeader, 8, "")...))
	f.Add(answer(outHeader-1, 7, ""))
	f.Add(answer(maxMessage+1, 7, ""))
	f.Add(answer(1<<31, 7, "x"))
	f.Add([]byte{16, 0, 0})
	f.Fuzz(func(t *testing.T, sent []byte) {
		in := bufio.NewReaderSize(iotestHalf{bytes.NewReader(sent)}, maxMessage)
		left := sent
		for {
			m, err := nextMessage(in)
			if err != nil {
				return
			}
			n := binary.LittleEndian.Uint32(m)
			if int(n) != len(m) || n < outHeader || n > maxMessage || binary.LittleEndian.Uint64(m[8:]) == 0 {
				t.Fatalf("a message of %d bytes that says %x", len(m), m[:outHeader])
			}
			// It lies in what was sent, after notes at most.
			for !bytes.HasPrefix(left, m) {
				note := binary.LittleEndian.Uint32(left)
				if binary.LittleEndian.Uint64(left[8:]) != 0 || int(note) > len(left) {
					t.Fatalf("%x was not sent", m)
				}
				left = left[note:]
			}
			left = left[len(m):]
			if _, err := in.Discard(len(m)); err != nil {
				t.Fatal(err)
			}
		}
	})
}

// iotestHalf reads in small pieces.
type iotestHalf struct{ r io.Reader }

func (h iotestHalf) Read(b []byte) (int, error) { return h.r.Read(b[:(len(b)+1)/2]) }

// TestNoFuse: where the device is not to be had, the error says what would help.
func TestNoFuse(t *testing.T) {
	m := mounting(t)
	if m == nil {
		return
	}
	s := newSharing(t)
	s.folder("share0", rules.ReadWrite)
	k := newShares(*m, s.dial)
	defer k.close()
	mount := &wire.Mount{Tag: "share0", Type: "fuse", Path: "/run/f"}
	if err := k.attach(t.Context(), mount); err != nil {
		t.Fatalf("control: %v", err)
	}
	if err := mnt("dev", "/dev", "tmpfs", fromHost, "").Do(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Unmount("/dev", unix.MNT_DETACH) }()
	mount = &wire.Mount{Tag: "share0", Type: "fuse", Path: "/run/g"}
	if err := k.attach(t.Context(), mount); !errors.Is(err, unix.ENOENT) || !strings.Contains(err.Error(), "modprobe") {
		t.Errorf("without a device: %v", err)
	}
	if err := os.WriteFile(fuseDevice, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount(fuseDevice, fuseDevice, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("", fuseDevice, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	if err := k.attach(t.Context(), mount); err == nil {
		t.Error("a file is taken for the device")
	}
}

// TestGitInit: where hooks are protected, a repository can be made all the same,
// because nothing is copied into it.
func TestGitInit(t *testing.T) {
	m := mounting(t)
	if m == nil {
		return
	}
	if _, err := exec.LookPath("git"); err != nil {
		t.Skip(err)
	}
	s := newSharing(t)
	// git init writes its config, too, which the built-in list protects.
	dir := s.folder("share0", rules.ReadWrite, rules.List{Pattern: "!.git/config", Origin: "test"})
	h := shared(t, m, s, &wire.Mount{Tag: "share0", Type: "fuse", Path: "/run/w"})
	e := h.bad("mkdir -p /run/w/control/.git/hooks && echo x >/run/w/control/.git/hooks/pre-commit")
	if !strings.Contains(e, "not permitted") {
		t.Errorf("control: hooks are not protected: %q", e)
	}
	env := gitTemplate()
	if len(env) != 1 {
		t.Fatal(env)
	}
	task := h.exec(&wire.Exec{Argv: []string{"/bin/sh", "-c", "git init -q /run/w/repo"}, Env: env, User: "root"})
	task.wait()
	task.wantExit(0, 0)
	if task.stderr.Len() > 0 {
		t.Errorf("git complains: %s", task.stderr.String())
	}
	if _, err := os.Stat(dir + "/repo/.git/HEAD"); err != nil {
		t.Error(err)
	}
	h.bad("GIT_TEMPLATE_DIR=/usr/share/git-core/templates git init -q /run/w/other")
}
