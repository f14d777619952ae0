package vz

import "net"

// State is a machine's, as the framework tells it.
type State int

// States. Those on the way from one to another are Between.
const (
	Between State = iota
	Running
	Paused
	Stopped
	Failed
)

// machine is what VM needs of a machine of the framework. Its calls return when
// the framework has answered, which may be never.
type machine interface {
	Start() error
	Pause() error
	Resume() error
	// RequestStop presses the machine's power button.
	RequestStop() error
	// Stop ends a machine that is Running or Paused.
	Stop() error
	// Save writes a paused machine's state to a file; Restore makes a machine
	// that was never started paused, as the file has it.
	Save(path string) error
	Restore(path string) error
	// States says each state that the machine has come to. Nothing is lost, and
	// it is never closed.
	States() <-chan State
	// Connect dials the guest. Listen takes what the guest dials; both only once
	// the machine runs.
	Connect(port uint32) (stream, error)
	Listen(port uint32) (acceptor, error)
}

// stream is a connection with the guest.
type stream interface {
	net.Conn
	CloseWrite() error
}

// acceptor hands out what the guest dials. Its Accept need not return after
// Close, and after Close it hands out nothing.
type acceptor interface {
	Accept() (stream, error)
	Close() error
}
