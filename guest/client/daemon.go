package client

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/carrel-vm/carrel/guest/inherit"
	"github.com/carrel-vm/carrel/guest/place"
)

const (
	// readyTimeout bounds the daemon's start, which includes taking over the
	// keepers of a daemon that is gone.
	readyTimeout = 60 * time.Second
	// maxReadyLine bounds what a daemon says about itself when it starts.
	maxReadyLine = 4 << 10
	// maxLog is the size, in bytes, beyond which the daemon's log is set aside
	// as daemon.log.1 before the next start.
	maxLog = 8 << 20
)

// Files in the runtime folder that are only ever locked.
const (
	startLock  = "start.lock" // whoever starts or stops the daemon
	daemonLock = "d.lock"     // the daemon, as long as it lives
)

// startDaemon starts carreld and returns a connection to it. Two clients that
// start at once wait for each other, so that the second finds the first one's
// daemon.
func (c *Client) startDaemon(ctx context.Context) (net.Conn, error) {
	if err := place.MakePrivate(c.place.Run); err != nil {
		if _, serr := os.Lstat(c.place.Run); serr != nil { // nobody has put anything there
			return nil, &Error{
				Code: "bad_home", Message: "make the daemon's folder " + c.place.Run, Cause: err.Error(),
				Cure: "set CARREL_HOME to a folder of your own, or see to HOME: state, settings and cache lie beneath it", err: err,
			}
		}
		return nil, squatted(c.place, err)
	}
	unlock, err := lockFile(ctx, filepath.Join(c.place.Run, startLock))
	if err != nil {
		return nil, fmt.Errorf("wait for another start of the daemon: %w", err)
	}
	defer unlock()
	if conn, err := dialSocket(ctx, c.place); !errors.Is(err, errNotRunning) {
		return conn, err
	}
	path := c.opts.Daemon
	if path == "" {
		if path, err = FindDaemon(); err != nil {
			return nil, err
		}
	}
	if c.opts.Notice != nil {
		c.opts.Notice("starting the daemon")
	}
	deadline := time.Now().Add(readyTimeout)
	for wait := 20 * time.Millisecond; ; wait = min(2*wait, time.Second) {
		already, err := c.spawn(ctx, path)
		if err != nil {
			return nil, err
		}
		conn, err := dialSocket(ctx, c.place)
		if !errors.Is(err, errNotRunning) {
			return conn, err
		}
		// The other daemon is just ending, or does not listen yet.
		if !already || time.Now().After(deadline) {
			return nil, c.startError(path, "it says that it is ready, but nothing listens at "+c.place.Socket)
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// spawn runs the daemon in a session of its own and returns when it says, on a
// pipe, that it is ready, or that another one serves already.
func (c *Client) spawn(ctx context.Context, path string) (already bool, err error) {
	log, err := openLog(c.place)
	if err != nil {
		return false, fmt.Errorf("open the daemon's log: %w", err)
	}
	defer log.Close()
	r, w, err := os.Pipe()
	if err != nil {
		return false, err
	}
	cmd, err := startAlone(func() *exec.Cmd {
		cmd := exec.Command(path, "daemon", "--ready-fd", "3")
		cmd.Dir = filepath.VolumeName(path) + string(filepath.Separator) // it must not hold the caller's folder busy
		cmd.Env = append(os.Environ(), c.place.Env()...)
		cmd.Stdout, cmd.Stderr = log, log
		return cmd
	}, w)
	w.Close()
	if err != nil {
		r.Close()
		return false, c.startError(path, err.Error())
	}
	// The daemon outlives this client on purpose, so nobody waits for this
	// goroutine: it reaps the daemon if the daemon ends first.
	go cmd.Wait()

	line, err := inherit.Line(ctx, r, maxReadyLine, readyTimeout)
	switch {
	case ctx.Err() != nil:
		return false, ctx.Err()
	case line == "ok" || line == "already":
		return line == "already", nil
	case line != "":
		return false, c.startError(path, line)
	case errors.Is(err, context.DeadlineExceeded):
		return false, c.startError(path, fmt.Sprintf("it did not become ready within %v", readyTimeout))
	}
	return false, c.startError(path, "it ended before it was ready: "+tail(log.Name()))
}

func (c *Client) startError(path, cause string) error {
	return &Error{
		Code: "daemon_start", Message: "start the daemon " + path, Cause: cause,
		Cure: "see " + filepath.Join(c.place.State, "daemon.log") + ", or run `carrel daemon run` to watch it start",
	}
}

// openLog opens the daemon's log for appending, following no link.
func openLog(p place.Place) (*os.File, error) {
	if err := os.MkdirAll(p.State, 0o700); err != nil {
		return nil, err
	}
	name := filepath.Join(p.State, "daemon.log")
	if fi, err := os.Lstat(name); err == nil {
		switch {
		case !fi.Mode().IsRegular():
			return nil, fmt.Errorf("%s is not a regular file: remove it", name)
		case fi.Size() > maxLog:
			if err := os.Rename(name, name+".1"); err != nil {
				return nil, err
			}
		}
	}
	return os.OpenFile(name, os.O_WRONLY|os.O_APPEND|os.O_CREATE|noFollow, 0o600)
}

// tail returns the last line of a log, at most 1 KiB of it.
func tail(name string) string {
	f, err := os.Open(name)
	if err != nil {
		return err.Error()
	}
	defer f.Close()
	if fi, err := f.Stat(); err == nil && fi.Size() > 1<<10 {
		f.Seek(-1<<10, io.SeekEnd)
	}
	b, _ := io.ReadAll(io.LimitReader(f, 1<<10))
	b = bytes.TrimSpace(b)
	if i := bytes.LastIndexByte(b, '\n'); i >= 0 {
		b = b[i+1:]
	}
	if len(b) == 0 {
		return "it said nothing"
	}
	return string(b)
}
