package agent

import (
	"net"
	"os"
	"strings"
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
