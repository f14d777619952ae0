package seatbelt

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/carrel-vm/carrel/hypervisor"
)

// Bare is the part of this package that needs no macOS, as a driver for tests
// on Linux: the agent, the carrier, the start and the end of a guest, with no
// wall around it. No program that is not built for tests names it.
type Bare struct {
	// Agent is the path of carrel-agent.
	Agent string
}

// Name implements hypervisor.Driver.
func (b *Bare) Name() string { return "bare" }

// Create implements hypervisor.Driver.
func (b *Bare) Create(_ context.Context, cfg hypervisor.Config, h hypervisor.Handlers) (hypervisor.VM, error) {
	op := func(err error) error { return &hypervisor.Error{Op: "create guest", Err: err} }
	if err := cfg.CheckWithoutDisks(); err != nil {
		return nil, op(err)
	}
	files := filesOf(cfg.Dir, cfg)
	v, err := newVM(cfg, h, func(way bool) (command, error) {
		c, _, err := agentCommand(b.Agent, files, strconv.Itoa(os.Getuid()), way)
		return c, err
	}, inProc, func() error {
		if cfg.Scratch != "" {
			return nil
		}
		return removeTree(files)
	})
	if err != nil {
		return nil, op(err)
	}
	return v, nil
}

// inProc lists all processes, as far as they are none that have ended.
func inProc() (all []process, err error) {
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		return nil, err
	}
	for _, s := range stats {
		b, err := os.ReadFile(s)
		if err != nil {
			continue
		}
		f := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:])) // from the state on: proc(5)
		if f[0] == "Z" {
			continue
		}
		var p process
		p.pid, _ = strconv.Atoi(filepath.Base(filepath.Dir(s)))
		p.parent, _ = strconv.Atoi(f[1])
		p.group, _ = strconv.Atoi(f[2])
		p.began, _ = strconv.ParseInt(f[19], 10, 64) // in ticks since the host's start
		all = append(all, p)
	}
	return all, nil
}
