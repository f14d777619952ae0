package bubblewrap

import "github.com/carrel-vm/carrel/hypervisor"

// HostRoot is the Config's Root of a guest whose system is the host's own,
// read-only.
const HostRoot = "/"

// wallSpec is what the wall process is told, as JSON on its descriptor 3.
type wallSpec struct {
	Name string
	// Dir is the guest's own folder.
	Dir string
	// Bwrap and Agent are programs of the host.
	Bwrap, Agent string
	// Image is an EROFS image to mount, Tree a folder that holds one
	// unpacked. Both are empty when the root is the host's system.
	Image, Tree string
	// Changes keeps what the guest changes of its system, over its end. Empty:
	// that is lost with it.
	Changes   string
	Shares    []wallShare
	CPUs      int
	MemoryMiB int
	Processes int
}

// wallShare is one share and the folder that it must be.
type wallShare struct {
	Path     string
	Dev, Ino uint64
	Writable bool
}

// wallWord is what the wall says to the keeper, a line of JSON each.
type wallWord struct {
	// Started says that the guest's first process runs. The line brings a
	// descriptor of it (pidfd_open(2)).
	Started bool `json:",omitempty"`
	// Notes say what holds this guest, and what does not, a sentence each.
	Notes []string `json:",omitempty"`
	// Command is bwrap's own.
	Command []string `json:",omitempty"`
	// Op, Err and Cure say why the guest could not be started, or why a
	// command failed.
	Op, Err, Cure string `json:",omitempty"`
	// Done answers a command.
	Done bool `json:",omitempty"`
	// Gone is the last line: the guest has ended, for the reason of Cause if
	// that was not in order.
	Gone  bool   `json:",omitempty"`
	Cause string `json:",omitempty"`
}

// Commands of the keeper to the wall, a byte each. The end of the stream is
// commandKill.
const (
	commandPause  = 'p'
	commandResume = 'r'
	commandKill   = 'k'
)

// Descriptors of the wall process. Its standard output and error are the
// guest's console.
const (
	wallSpecFD = 3 + iota
	wallControlFD
	wallBootFD
	wallCallsFD
)

func (w *wallWord) failure() error {
	if w.Err == "" {
		return nil
	}
	return &hypervisor.Error{Op: w.Op, Err: errText(w.Err), Cure: w.Cure}
}

// errText is an error that another process had.
type errText string

func (e errText) Error() string { return string(e) }
