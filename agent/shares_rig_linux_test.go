package agent

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/encoding/protodelim"

	"github.com/carrel-vm/carrel/guest/share"
	"github.com/carrel-vm/carrel/guest/share/rules"
	"github.com/carrel-vm/carrel/guest/wire"
)

// mountsName tells the test program as what it mounts, in the mount namespace
// that was made for it.
const mountsName = "CARREL_AGENT_MOUNTS"

// Whose mounts they are: a machine's root's, or those of a user namespace, as
// in a process wall.
const (
	asRoot = "root"
	asUser = "user"
)

// mounting runs the calling test again in a mount namespace of its own, once as
// root and once in a user namespace. There it returns how a guest of that kind
// mounts; here nil. It needs root, which `make test` has.
func mounting(t *testing.T) *mounter {
	t.Helper()
	if who := os.Getenv(mountsName); who != "" {
		return ownPlaces(t, who)
	}
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	for _, who := range []string{asRoot, asUser} {
		t.Run(who, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(context.Background(), 3*patience)
			defer cancel()
			test, _, _ := strings.Cut(t.Name(), "/")
			c := exec.CommandContext(ctx, "/proc/self/exe", "-test.run=^"+test+"$", "-test.v=true")
			c.Env = append(os.Environ(), mountsName+"="+who)
			c.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS}
			if who == asUser {
				all := []syscall.SysProcIDMap{{Size: 65536}}
				c.SysProcAttr.Cloneflags |= unix.CLONE_NEWUSER
				c.SysProcAttr.UidMappings, c.SysProcAttr.GidMappings, c.SysProcAttr.GidMappingsEnableSetgroups = all, all, true
			}
			out, err := c.CombinedOutput()
			if err != nil || !bytes.Contains(out, []byte("--- PASS: "+test)) {
				t.Fatalf("%v\n%s\nagain: go test -run '^%s$' ./agent", err, out, test)
			}
		})
	}
	return nil
}

func ownPlaces(t *testing.T, who string) *mounter {
	t.Helper()
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		t.Fatal(err)
	}
	if err := mnt("run", "/run", "tmpfs", fromHost, "mode=0755").Do(); err != nil {
		t.Fatal(err)
	}
	for _, d := range []string{scratchDir, lowerDir, upperDir, emptyDir} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	m := &mounter{disk: scratchDir, lower: virtioFS, options: plain}
	if who == asUser {
		m.options, m.cover = plainUser, true
	}
	return m
}

// sharing is the host's end of shares: one real share server for each tag.
type sharing struct {
	t     *testing.T
	group sync.WaitGroup

	mu      sync.Mutex
	folders map[string]share.Options
	paths   map[string]string
	conns   map[string]net.Conn
}

func newSharing(t *testing.T) *sharing {
	t.Helper()
	s := &sharing{t: t, folders: make(map[string]share.Options), paths: make(map[string]string), conns: make(map[string]net.Conn)}
	t.Cleanup(s.group.Wait)
	return s
}

// folder makes a folder that is served under a tag.
func (s *sharing) folder(tag string, mode rules.Mode, protect ...rules.List) string {
	s.t.Helper()
	r, err := rules.Compile(rules.Options{Mode: mode, Protect: protect})
	if err != nil {
		s.t.Fatal(err)
	}
	dir, err := filepath.EvalSymlinks(s.t.TempDir())
	if err != nil {
		s.t.Fatal(err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.folders[tag], s.paths[tag] = share.Options{Rules: r}, dir
	return dir
}

// breakOff ends the stream of a share from the host's side.
func (s *sharing) breakOff(tag string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	_ = s.conns[tag].Close()
}

func (s *sharing) dial(_ context.Context, port uint32) (net.Conn, error) {
	if port != wire.PortShare {
		return nil, fmt.Errorf("port %d", port)
	}
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	guest, err := fileConn(os.NewFile(uintptr(fds[0]), "guest"))
	if err != nil {
		return nil, err
	}
	host, err := fileConn(os.NewFile(uintptr(fds[1]), "host"))
	if err != nil {
		return nil, err
	}
	s.group.Go(func() { s.serve(host) })
	return guest, nil
}

// mute is the tag of a share whose server takes everything and says nothing.
const mute = "mute"

func (s *sharing) serve(c net.Conn) {
	defer c.Close()
	var a wire.Attach
	if err := (protodelim.UnmarshalOptions{MaxSize: 1024}).UnmarshalFrom(bytewise{c}, &a); err != nil {
		s.t.Errorf("a stream without Attach: %v", err)
		return
	}
	s.mu.Lock()
	s.conns[a.Tag] = c
	path, o := s.paths[a.Tag], s.folders[a.Tag]
	s.mu.Unlock()
	if a.Tag == mute {
		_, _ = io.Copy(io.Discard, c)
	}
	if path == "" {
		return
	}
	root, err := share.OpenRoot(path)
	if err != nil {
		s.t.Error(err)
		return
	}
	server := share.New(root, o)
	defer server.Close()
	_ = server.ServeStream(context.Background(), c)
}

// shared is the host of an agent that mounts shares of s.
func shared(t *testing.T, m *mounter, s *sharing, mounts ...*wire.Mount) *host {
	t.Helper()
	h := hostWith(t, Options{DialHost: s.dial, systemOptions: systemOptions{shares: newShares(*m, s.dial)}})
	if e := h.setUp(&wire.Setup{UnixNanos: 1, MaxTasks: 16, Mounts: mounts}); e != "" {
		t.Fatal(e)
	}
	return h
}

// stop asks the agent to end, and waits for it.
func (h *host) stop() {
	h.t.Helper()
	if a := h.control(&wire.Control{Id: 99, Kind: &wire.Control_PowerOff{PowerOff: &wire.PowerOff{}}}); a.Error != "" {
		h.t.Fatal(a.Error)
	}
	err := <-h.ended
	if err != nil {
		h.t.Fatal(err)
	}
	h.ended <- nil
}

// good runs a script, which must end well, and returns what it printed.
func (h *host) good(script string) string {
	h.t.Helper()
	s := h.sh("set -e; " + script)
	_ = s.conn.Close()
	s.wantExit(0, 0)
	return s.stdout.String()
}

// bad runs a script that must fail, and returns what it complained of.
func (h *host) bad(script string) string {
	h.t.Helper()
	s := h.sh(script)
	_ = s.conn.Close()
	if s.exit == nil || s.exit.Code == 0 {
		h.t.Fatalf("%s: %v %v", script, s.exit, s.failed)
	}
	return s.stderr.String()
}

func (h *host) attach(m *wire.Mount) string {
	h.t.Helper()
	return h.control(&wire.Control{Id: 1, Kind: &wire.Control_Attach{Attach: m}}).Error
}

func (h *host) detach(path string) string {
	h.t.Helper()
	return h.control(&wire.Control{Id: 2, Kind: &wire.Control_Detach{Detach: &wire.Detach{Path: path}}}).Error
}

func (h *host) refresh(path string) string {
	h.t.Helper()
	return h.control(&wire.Control{Id: 3, Kind: &wire.Control_Refresh{Refresh: &wire.Refresh{Path: path}}}).Error
}

func write(t *testing.T, path, content string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

// noLeak waits until no more files are open than were, but for what other
// goroutines open and close all the time.
func noLeak(t *testing.T, before int) {
	t.Helper()
	for end := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		after := files(t)
		if after <= before+1 {
			return
		}
		if time.Now().After(end) {
			t.Errorf("%d files are open, %d were", after, before)
			return
		}
	}
}

// files counts this process's open files.
func files(t *testing.T) int {
	t.Helper()
	e, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(e)
}
