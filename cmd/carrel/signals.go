package main

import (
	"context"
	"os"
	"os/signal"
	"slices"
	"sync"
	"time"

	"github.com/carrel-vm/carrel/guest/client"
)

// secondTime is how soon a second Ctrl-C must follow the first to end the
// program rather than the task.
const secondTime = 2 * time.Second

// heldTime is how long a signal that comes while a task is being started waits for
// the daemon's word that there is one, and ends the command then.
const heldTime = 5 * time.Second

// signals hands the signals of this process to the task, or ends the command
// while there is none. Of a task that is being started nobody here knows whether it
// runs already: its signals are held until that is said.
type signals struct {
	a      *app
	cancel context.CancelCauseFunc
	ch     chan os.Signal
	done   chan struct{}
	exit   func(int) // os.Exit

	mu      sync.Mutex
	proc    receiver
	starts  bool            // a task is being started
	held    []client.Signal // since then
	late    *time.Timer     // ends the command; runs when there are such
	restore func()          // the terminal
	last    time.Time
	left    string // what goes on when the program ends
}

// receiver is a task, of which this needs no more.
type receiver interface{ Signal(client.Signal) error }

func watchSignals(a *app, cancel context.CancelCauseFunc) *signals {
	s := &signals{a: a, cancel: cancel, ch: make(chan os.Signal, 8), done: make(chan struct{}), exit: os.Exit}
	for sig := range forwarded {
		if !signal.Ignored(sig) { // nohup stays nohup
			signal.Notify(s.ch, sig)
		}
	}
	go func() {
		defer close(s.done)
		for sig := range s.ch {
			s.one(forwarded[sig], time.Now())
		}
	}()
	return s
}

func (s *signals) stop() {
	signal.Stop(s.ch)
	close(s.ch)
	<-s.done
}

// hold says that a task is being started, and returns what ends that where none was.
func (s *signals) hold() (over func()) {
	s.mu.Lock()
	s.starts = true
	s.mu.Unlock()
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if held := s.releaseLocked(); len(held) > 0 {
			s.cancel(signalError{held[0]})
		}
	}
}

func (s *signals) releaseLocked() (held []client.Signal) {
	if s.late != nil {
		s.late.Stop()
	}
	held = s.held
	s.starts, s.held, s.late = false, nil, nil
	return held
}

// attach makes p the one that gets the signals, and returns what ends that.
// left says what goes on if the program ends before the task.
func (s *signals) attach(p receiver, left string, restore func()) func() {
	s.mu.Lock()
	s.proc, s.left, s.restore = p, left, restore
	for _, n := range s.releaseLocked() {
		s.pass(n)
	}
	s.mu.Unlock()
	return func() {
		s.mu.Lock()
		s.proc, s.restore = nil, nil
		s.mu.Unlock()
	}
}

// one deals with one signal that came at now.
func (s *signals) one(n client.Signal, now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.proc == nil {
		switch {
		case !s.starts:
			s.cancel(signalError{n})
		case s.late == nil:
			s.late = time.AfterFunc(heldTime, func() { s.cancel(signalError{n}) })
			fallthrough
		default:
			if n == client.SIGINT && slices.Contains(s.held, n) { // whoever asks again does not want to wait
				s.cancel(signalError{n})
			}
			s.held = append(s.held, n)
		}
		// The command may be at something that cannot be called off.
		if n == client.SIGINT && !s.last.IsZero() && now.Sub(s.last) < secondTime {
			s.exit(128 + int(n))
		}
		if n == client.SIGINT {
			s.last = now
		}
		return
	}
	if n == client.SIGINT && !s.last.IsZero() && now.Sub(s.last) < secondTime {
		if s.restore != nil {
			s.restore()
		}
		s.a.warn("second Ctrl-C: leaving; " + s.left)
		s.exit(128 + int(n))
		return
	}
	if n == client.SIGINT {
		s.last = now
	}
	s.pass(n)
}

func (s *signals) pass(n client.Signal) {
	if err := s.proc.Signal(n); err != nil {
		s.a.warn(n.String() + " was not passed on: " + err.Error())
	}
}
