package machine

import (
	"bytes"
	"errors"
	"os"
	"slices"
	"syscall"
)

// Words of the kernel's command line that are meant for the agent.
const (
	// ProbeWord asks for nothing but a sign of life.
	ProbeWord = "carrel.probe=1"
	// SelfTestWord asks what the kernel has of what a guest needs.
	SelfTestWord = "carrel.selftest=1"
	// PowerOffWord says that the machine ends by a power-off: a reboot starts it
	// again there.
	PowerOffWord = "carrel.end=poweroff"

	// scratchWord says that there is a disk that takes the guest's changes.
	scratchWord = "carrel.scratch="
)

// initName is how a kernel calls the first process of an initrd.
const initName = "/init"

// Start is the making of a machine's system, which goes on by itself.
//
//  1. devices, /proc, /sys, control groups; the kernel's command line: Early
//  2. beside one another:
//     - the root file system, which then replaces the initrd; /run, /tmp: Rooted
//     - the control groups of agent and tasks, kernel settings
//  3. Wait
type Start struct {
	early, rooted, limited chan struct{}
	// Each is set before the channel of its name is closed.
	earlyErr, rootErr, limitErr error

	words []string
	disk  string
}

// started is the start of the machine whose first process this is; nil: this is
// another process.
var started *Start

func init() {
	if os.Getpid() == 1 && len(os.Args) == 1 && os.Args[0] == initName {
		started = start()
	}
}

// Begun returns the start, which has begun already in a machine's first process.
func Begun() *Start {
	if started == nil {
		started = start()
	}
	return started
}

func start() *Start {
	s := &Start{early: make(chan struct{}), rooted: make(chan struct{}), limited: make(chan struct{})}
	go s.run()
	return s
}

func (s *Start) run() {
	syscall.Umask(0o022)
	s.earlyErr = early()
	if s.earlyErr == nil {
		line, _ := os.ReadFile("/proc/cmdline")
		for _, w := range bytes.Fields(line) {
			s.words = append(s.words, string(w))
		}
	}
	close(s.early)
	if s.earlyErr != nil || s.Has(ProbeWord) || s.Has(SelfTestWord) {
		s.rootErr = errors.New("this machine makes no file system")
		close(s.rooted)
		close(s.limited)
		return
	}
	go func() {
		s.limitErr = errors.Join(groups(), harden())
		close(s.limited)
	}()
	s.disk, s.rootErr = fileSystem(s.Scratch(), s.limited)
	close(s.rooted)
}

// fileSystem makes the guest's own.
func fileSystem(scratch bool, still <-chan struct{}) (disk string, err error) {
	if disk, err = root(scratch, still); err != nil {
		return "", err
	}
	return disk, settle(disk)
}

// Early waits until devices, /proc and /sys are there.
func (s *Start) Early() error {
	<-s.early
	return s.earlyErr
}

// Has says whether the kernel's command line has a word; after Early.
func (s *Start) Has(word string) bool { return slices.Contains(s.words, word) }

// Scratch says whether a disk for changes was announced; after Early.
func (s *Start) Scratch() bool {
	return slices.ContainsFunc(s.words, func(w string) bool { return begins(w, scratchWord) })
}

// Rooted waits until the root file system is in place. Before that nothing may
// look for a file by its name.
func (s *Start) Rooted() error {
	<-s.rooted
	return s.rootErr
}

// Wait waits for all of it.
func (s *Start) Wait() error {
	err := s.Rooted()
	<-s.limited
	if s.limitErr != nil {
		err = errors.Join(err, failed("reserve room for the agent", s.limitErr))
	}
	return err
}
