package agent

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// resolver asks the agent. A lookup that gets no answer has lost nothing on
// the way: it never leaves the guest.
const resolver = "nameserver 127.0.0.1\noptions edns0 trust-ad timeout:2 attempts:2\n"

// settleNames writes what programs read about names, the certificates and
// git's rewriting, and returns the variables that every task gets. Under
// software emulation each file takes milliseconds, so they are written side by
// side.
func settleNames(root string, trusted []byte, gitHosts []string) (env []string, err error) {
	var g errgroup.Group
	g.Go(func() error { return resolve(root) })
	g.Go(func() error { return rewriteGit(root, gitHosts) })
	g.Go(func() (err error) {
		env, err = trust(root, trusted)
		return err
	})
	err = g.Wait()
	return env, err
}

// resolve has the guest's C library ask the agent.
func resolve(root string) error {
	path := root + "/etc/resolv.conf"
	if b, err := os.ReadFile(path); err != nil || string(b) != resolver {
		// replace, because an image may have a link there to a file of
		// systemd's that nobody makes here.
		if err := replace(path, resolver); err != nil && !readOnly(err) {
			return fmt.Errorf("write the guest's resolv.conf: %w", err)
		}
	}
	path = root + "/etc/nsswitch.conf"
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // the C library then asks files and DNS
	}
	if err != nil {
		return fmt.Errorf("read the guest's nsswitch.conf: %w", err)
	}
	if s, changed := askDNS(string(b)); changed {
		if err := place(path, s); err != nil && !readOnly(err) {
			return fmt.Errorf("write the guest's nsswitch.conf: %w", err)
		}
	}
	return nil
}

// askDNS makes the hosts line of an nsswitch.conf name DNS, if it does not.
func askDNS(conf string) (string, bool) {
	var b strings.Builder
	changed := false
	for line := range strings.Lines(conf) {
		if v, ok := strings.CutPrefix(strings.TrimSpace(line), "hosts:"); ok {
			v, _, _ = strings.Cut(v, "#")
			if !strings.Contains(" "+strings.Join(strings.Fields(v), " ")+" ", " dns ") {
				line, changed = "hosts: files dns\n", true
			}
		}
		b.WriteString(line)
	}
	return b.String(), changed
}

// askAgent makes the folder that an image may lack, and has names asked of the
// agent.
func askAgent(resolver string) error {
	if err := os.MkdirAll("/etc", 0o755); err != nil {
		return err
	}
	if err := replace("/etc/resolv.conf", resolver); err != nil {
		complain(err)
	}
	return nil
}

// readOnly says whether a file could not be written because its file system
// cannot: what is there must do then.
func readOnly(err error) bool { return errors.Is(err, unix.EROFS) }
