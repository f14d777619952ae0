package hcs

import (
	"bytes"
	"context"
	"net"
	"time"

	"github.com/carrel-vm/carrel/hypervisor/wall"
)

// consoleRate bounds what a guest's console may cost the host, in bytes per
// second: nobody reads faster, and a guest that prints faster waits.
const consoleRate = 1 << 20

// consoleTail is how much of the console's end is searched for a panic, in bytes.
const consoleTail = 4 << 10

// panicMark is how Linux announces that it gives up. A guest may print it at
// will: it only gets its own ending called by another name.
var panicMark = []byte("Kernel panic - not syncing")

// drainConsole takes the one connection that the guest's worker process makes,
// hands its bytes to sink until it ends, and returns the line in which the kernel
// panicked, escaped, or empty. It ends when ln is closed before, or the pipe broken,
// or ctx done.
func drainConsole(ctx context.Context, ln net.Listener, sink func([]byte)) string {
	c, err := ln.Accept()
	if err != nil {
		return ""
	}
	defer c.Close()
	stop := context.AfterFunc(ctx, func() { c.Close() })
	defer stop()
	ln.Close() // nobody else has a console here
	var last []byte
	buf := make([]byte, 4<<10)
	var spent int
	period := time.Now()
	for {
		n, err := c.Read(buf)
		if n > 0 {
			last = append(last, buf[:n]...)
			last = last[max(0, len(last)-consoleTail):]
			if sink != nil {
				sink(buf[:n])
			}
		}
		if err != nil {
			break
		}
		if spent += n; spent >= consoleRate/10 {
			if wait := 100*time.Millisecond - time.Since(period); wait > 0 {
				time.Sleep(wait)
			}
			spent, period = 0, time.Now()
		}
	}
	i := bytes.LastIndex(last, panicMark)
	if i < 0 {
		return ""
	}
	line, _, _ := bytes.Cut(last[i:], []byte("\n"))
	var t wall.Tail
	t.Add(line[:min(len(line), 256)])
	return t.Text()
}
