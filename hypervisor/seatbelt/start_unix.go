//go:build unix

package seatbelt

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/carrel-vm/carrel/hypervisor"
)

// newVM makes a guest that is not started yet.
func newVM(cfg hypervisor.Config, h hypervisor.Handlers, prepare func(way bool) (command, error), processes func() ([]process, error), remove func() error) (*vm, error) {
	streams, theirs, err := newCarrier()
	if err != nil {
		return nil, err
	}
	return &vm{
		shares: cfg.Shares, console: h.Console, streams: streams, theirs: theirs, gone: make(chan struct{}),
		prepare: prepare, processes: processes, remove: remove,
	}, nil
}

// filesOf is the folder for what a guest writes: that of its disk, if it has
// one, whose image is for a machine, or else one that goes with the guest.
func filesOf(dir string, cfg hypervisor.Config) string {
	if cfg.Scratch != "" {
		return filepath.Join(dir, filepath.Base(cfg.Scratch)+".files")
	}
	return filepath.Join(dir, "files")
}

// besides is the agent's first argument where it runs beside the guest's
// programs: cmd/carrel-agent.
const besides = "beside"

// agentCommand prepares the start of a guest's agent, without what confines it:
// the guest's folders, the listener of its proxy, whose port it returns, and the
// environment that its tasks have from it.
func agentCommand(agent, files, user string, way bool) (c command, port uint16, err error) {
	home, tmp := filepath.Join(files, "home"), filepath.Join(files, "tmp")
	for _, dir := range []string{files, home, tmp} {
		if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
			return c, 0, err
		}
	}
	c.argv = []string{agent, besides, "--boot-fd=3", "--call-fd=4", "--dir=" + filepath.Join(files, "agent")}
	c.env = []string{
		"HOME=" + home, "TMPDIR=" + tmp + "/", "LANG=en_US.UTF-8", "USER=" + user, "LOGNAME=" + user,
		// Apple's own programs before the stubs of /usr/bin, which would ask
		// services that a guest has not.
		"PATH=/Library/Developer/CommandLineTools/usr/bin:/opt/homebrew/bin:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin",
	}
	if !way {
		return c, 0, nil
	}
	// The guest inherits the listener of its proxy: Seatbelt cannot allow one
	// that takes whatever port is free.
	l, port, err := proxyListener()
	if err != nil {
		return c, 0, fmt.Errorf("listen for the guest's connections: %w", err)
	}
	c.files = append(c.files, l)
	c.argv = append(c.argv, "--proxy-fd=5")
	return c, port, nil
}
