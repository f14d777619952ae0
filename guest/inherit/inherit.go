// Package inherit gives open files to a process of ours that is started, and
// finds them in it. They have numbers, 3 and on, as descriptors have on Unix;
// Windows knows no numbers, and there the process is told its handles.
package inherit

import (
	"bufio"
	"context"
	"io"
	"os"
	"strings"
	"time"
)

// Limits are what a process is held to on Windows, by a job of its own.
type Limits struct {
	Memory uint64 // bytes that it may commit
	// Outlive: it goes on when the process that started it has ended.
	Outlive bool
}

// Line reads one line, of at most limit bytes and without its end, of what a process
// that was started says, and closes f. It is context.DeadlineExceeded when
// nothing came in time, and the cause of ctx when that ended. A pipe of Windows
// can be given up but not interrupted: its reader is left behind then, until the
// process has said its word or is gone.
func Line(ctx context.Context, f *os.File, limit int64, bound time.Duration) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, bound)
	defer cancel()
	type said struct {
		line string
		err  error
	}
	got := make(chan said, 1)
	go func() {
		line, err := bufio.NewReader(io.LimitReader(f, limit)).ReadString('\n')
		f.Close()
		got <- said{strings.TrimSpace(line), err}
	}()
	select {
	case s := <-got:
		return s.line, s.err
	case <-ctx.Done():
		f.SetReadDeadline(time.Unix(1, 0))
		return "", context.Cause(ctx)
	}
}
