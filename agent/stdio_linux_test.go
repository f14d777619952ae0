package agent

import (
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/carrel-vm/carrel/guest/wire"
)

// TestLateOutput: what a task has said is told by an agent, too, that does not get to
// run before the time for it is over; and a process that holds the pipe open is waited
// for no longer than it may be silent.
func TestLateOutput(t *testing.T) {
	for _, held := range []bool{false, true} {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		said := strings.Repeat("said ", 10_000)
		if _, err := w.WriteString(said); err != nil {
			t.Fatal(err)
		}
		if !held {
			w.Close()
		}
		host, agent := net.Pipe()
		ended := make(chan error, 1)
		go func() {
			d := new(drain)
			d.begin(r)
			_ = r.SetReadDeadline(time.Unix(1, 0)) // as it is to who runs only then
			err := (&output{conn: agent}).pump(r, false, d)
			agent.Close()
			ended <- err
		}()
		var got strings.Builder
		for in := wire.NewReader(host); ; {
			var m wire.Output
			if in.Read(&m) != nil {
				break
			}
			got.Write(m.GetStdout())
		}
		if err := <-ended; err != nil || got.String() != said {
			t.Errorf("%d bytes of %d came, %v", got.Len(), len(said), err)
		}
		r.Close()
		w.Close()
	}
}

// TestFloodAfterTheEnd: what has escaped a task and floods both of its streams does not
// keep the task from ending, whichever stream has used up what both may say; nor does
// what says a little again and again.
func TestFloodAfterTheEnd(t *testing.T) {
	for name, says := range map[string]func(w *os.File) error{
		"flood":  func(w *os.File) error { _, err := w.Write(make([]byte, 64<<10)); return err },
		"dawdle": func(w *os.File) error { time.Sleep(silence / 4); _, err := w.Write([]byte{'.'}); return err },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			host, agent := net.Pipe()
			defer host.Close()
			go func() { // which is slow enough for the pipes to be full at any time
				for b := make([]byte, 64<<10); ; time.Sleep(time.Millisecond) {
					if _, err := host.Read(b); err != nil {
						return
					}
				}
			}()
			o, d := &output{conn: agent}, new(drain)
			var pumps, writers sync.WaitGroup
			var files []*os.File
			for _, isErr := range []bool{false, true} {
				r, w, err := os.Pipe()
				if err != nil {
					t.Fatal(err)
				}
				files = append(files, r)
				writers.Go(func() {
					for says(w) == nil {
					}
					w.Close()
				})
				pumps.Go(func() {
					if err := o.pump(r, isErr, d); err != nil {
						t.Error(err)
					}
				})
			}
			d.begin(files...)
			over := make(chan struct{})
			go func() { pumps.Wait(); close(over) }()
			select {
			case <-over:
			case <-time.After(patience):
				t.Error("the task does not end")
				agent.Close()
			}
			for _, r := range files {
				r.Close()
			}
			writers.Wait()
			pumps.Wait()
		})
	}
}
