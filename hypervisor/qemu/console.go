package qemu

import (
	"bytes"
	"net"
	"time"
)

// panicMark is how Linux announces that it gives up. A guest may print it at
// will: it only gets its own ending called by another name.
var panicMark = []byte("Kernel panic - not syncing")

// consoleRate bounds what a guest's console may cost the host, in bytes per
// second; QEMU makes a guest that prints faster wait.
const consoleRate = 1 << 20

// drainConsole hands the console's bytes to sink until it ends, and returns
// the line in which the kernel panicked, escaped, or empty.
func drainConsole(c net.Conn, sink func([]byte)) string {
	last := tail{limit: 4 << 10}
	buf := make([]byte, 4<<10)
	var spent int
	period := time.Now()
	for {
		n, err := c.Read(buf)
		if n > 0 {
			last.Write(buf[:n])
			if sink != nil {
				sink(buf[:n])
			}
		}
		if err != nil {
			break
		}
		if spent += n; spent >= consoleRate/10 {
			// A tenth of the rate is spent: no more before a tenth of a
			// second is over.
			if wait := 100*time.Millisecond - time.Since(period); wait > 0 {
				time.Sleep(wait)
			}
			spent, period = 0, time.Now()
		}
	}
	b := last.bytes()
	i := bytes.LastIndex(b, panicMark)
	if i < 0 {
		return ""
	}
	line, _, _ := bytes.Cut(b[i:], []byte("\n"))
	return Escape(line, 256)
}
