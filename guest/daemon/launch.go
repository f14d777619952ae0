package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/carrel-vm/carrel/guest"
	"github.com/carrel-vm/carrel/guest/inherit"
)

// wordTimeout bounds how long a process of ours may take to say its first word.
const wordTimeout = 60 * time.Second

// held bounds the processes that a job holds on Windows, in bytes: a thousand
// connections and the requests that are judged take less, and so does the
// largest change set. A keeper is in none: it starts processes.
var held = map[string]uint64{"egress": 2 << 30, "review": 2 << 30}

// child is a process that was started for a guest, until its first word.
type child struct {
	what string
	cmd  *exec.Cmd
	word *os.File
	log  string
	done chan struct{} // closed when it has been reaped
}

// launch starts one of a guest's processes, in a session of its own: it
// outlives this daemon. Its files are, from descriptor 3 on, those that are
// given, where nil stands for its request and after that for its word.
func (d *Daemon) launch(what string, command []string, env []string, dir string, request func(io.Writer) error, files ...inherit.Handed) (*child, error) {
	if len(command) == 0 {
		return nil, fmt.Errorf("start the %s: this daemon knows no command for it", what)
	}
	in, inW, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer in.Close()
	out, outW, err := os.Pipe()
	if err != nil {
		inW.Close()
		return nil, err
	}
	defer outW.Close()
	c := &child{what: what, word: out, log: filepath.Join(dir, what+".log"), done: make(chan struct{})}
	log, err := os.OpenFile(c.log, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		inW.Close()
		out.Close()
		return nil, err
	}
	defer log.Close()
	ours := []*os.File{in, outW}
	for i, f := range files {
		if f == nil {
			files[i], ours = ours[0], ours[1:]
		}
	}
	c.cmd = exec.Command(command[0], command[1:]...)
	c.cmd.Env = append(keptEnv(env...), d.opts.Place.Env()...)
	c.cmd.Dir = filepath.VolumeName(command[0]) + string(filepath.Separator) // it must hold no folder busy
	c.cmd.Stderr = log
	detach(c.cmd)
	if err := inherit.Start(c.cmd, files...); err != nil {
		inW.Close()
		out.Close()
		return nil, fmt.Errorf("start the %s: %w", what, err)
	}
	ended := func() {}
	if memory := held[what]; memory > 0 {
		// Before it reads its request.
		if ended, err = inherit.Hold(c.cmd, inherit.Limits{Memory: memory, Outlive: true}); err != nil {
			c.cmd.Process.Kill()
			c.cmd.Wait()
			inW.Close()
			out.Close()
			return nil, fmt.Errorf("start the %s: %w", what, err)
		}
	}
	go func() { // reaps it; it may well outlive this daemon
		c.cmd.Wait()
		ended()
		close(c.done)
	}()
	go func() { // ends with the pipe, at the latest with the process
		request(inW)
		inW.Close()
	}()
	return c, nil
}

// listens returns when the process has said the word that it should say.
func (c *child) listens(good string) error {
	word, err := inherit.Line(context.Background(), c.word, 4096, wordTimeout)
	if word == good {
		return nil
	}
	c.cmd.Process.Kill()
	if word != "" {
		return errors.New(word)
	}
	return fmt.Errorf("the %s ended at once: %w (see %s)", c.what, err, c.log)
}

// spawn starts a guest's egress process and its keeper, each with one end of the
// link between them, and returns when both take connections. Neither end stays
// here: when one process dies the other is to notice.
func (d *Daemon) spawn(trace *guest.Trace, req guest.KeepRequest, edge guest.EdgeRequest) error {
	b, err := json.Marshal(req)
	if err != nil {
		return err
	}
	request := func(w io.Writer) error { _, err := w.Write(b); return err }
	if len(d.opts.Edge) == 0 { // refuseOutside was asked
		keeper, err := d.launch("keeper", d.opts.Keeper, nil, req.Parts.Dir, request, nil, nil)
		if err != nil {
			return err
		}
		return keeper.listens("listening")
	}
	inner, outer, err := d.opts.Link()
	if err != nil {
		return err
	}
	defer inner.Close()
	defer outer.Close()
	guest.Crash("spawn: before")
	begun := trace.Begin("egress and keeper forked")
	egressServes, keeperListens := trace.Begin("egress process serves"), trace.Begin("keeper listens")
	egress, err := d.launch("egress", d.opts.Edge, edgeEnv, req.Parts.Dir, func(w io.Writer) error { return guest.WriteEdgeRequest(w, edge) }, nil, outer, nil)
	if err != nil {
		return err
	}
	guest.Crash("spawn: the egress process alone")
	keeper, err := d.launch("keeper", d.opts.Keeper, nil, req.Parts.Dir, request, nil, nil, inner)
	if err != nil {
		egress.cmd.Process.Kill()
		egress.word.Close()
		return err
	}
	begun()
	if err := egress.listens("serving"); err != nil {
		keeper.cmd.Process.Kill()
		keeper.word.Close()
		return err
	}
	egressServes()
	if err := keeper.listens("listening"); err != nil {
		egress.cmd.Process.Kill()
		return err
	}
	keeperListens()
	guest.Crash("spawn: after the keeper's word")
	return nil
}

// edgeEnv is what an egress process inherits beside what all do: where the
// host's certificate authorities are.
var edgeEnv = []string{"SSL_CERT_FILE", "SSL_CERT_DIR"}

// keptEnv is what a guest's processes inherit of the environment.
func keptEnv(more ...string) (env []string) {
	for _, k := range append([]string{"PATH", "HOME", "USER", "LOGNAME", "TMPDIR", "XDG_RUNTIME_DIR", "SystemRoot", "USERPROFILE", "LOCALAPPDATA", "TEMP", "TMP", "CARREL_CRASH", "CARREL_CRASH_MARK", "CARREL_CRASH_REVIEW", "CARREL_CRASH_REVIEW_MARK", "GORACE", "GOCOVERDIR"}, more...) {
		if v, ok := os.LookupEnv(k); ok {
			env = append(env, k+"="+v)
		}
	}
	return env
}
