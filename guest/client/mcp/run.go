package mcp

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"
	"time"

	sdk "github.com/modelcontextprotocol/go-sdk/mcp"

	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/client"
)

const (
	usualTime = 10 * time.Minute
	mostTime  = 6 * time.Hour
	// progressEvery is how often a client that wants it hears of a command.
	progressEvery = time.Second
	// maxRefused bounds the hosts that a result names, and lookBack the verdicts
	// among which they are looked for.
	maxRefused, lookBack = 8, 64
	// refusedTime bounds that look: a result does not wait for it.
	refusedTime = 5 * time.Second
)

type runInput struct {
	Command  string   `json:"command,omitempty" jsonschema:"a line for /bin/sh -c; or give args"`
	Args     []string `json:"args,omitempty" jsonschema:"a program and its arguments, without a shell"`
	Dir      string   `json:"dir,omitempty" jsonschema:"the folder to run in (default: the shared one)"`
	Env      []string `json:"env,omitempty" jsonschema:"variables, each NAME=value"`
	Stdin    string   `json:"stdin,omitempty" jsonschema:"text for its standard input"`
	Timeout  int      `json:"timeout_seconds,omitempty" jsonschema:"it is killed after so many seconds (default 600)"`
	MaxBytes int      `json:"max_bytes,omitempty" jsonschema:"how much of each of its outputs is answered, from the beginning and the end (default 32768, at most 262144); all of it is in the log"`
}

func (s *session) addRun() {
	yes := true
	sdk.AddTool(s.server, &sdk.Tool{
		Name: "run_command", Title: "Run a command in the sandbox",
		Description: "Runs a command in the sandbox and answers with its exit status and output. Files it changes in a shared folder wait for review; the network is closed but for hosts that were allowed.",
		Annotations: &sdk.ToolAnnotations{OpenWorldHint: &yes},
	}, s.run)
}

func (s *session) run(ctx context.Context, req *sdk.CallToolRequest, in runInput) (*sdk.CallToolResult, any, error) {
	t, err := s.task(in)
	if err != nil {
		return failure(err), nil, nil
	}
	limit := clamp(in.MaxBytes, usualText)
	c, guest, note, err := s.in(ctx)
	if err != nil {
		return failure(err), nil, nil
	}
	stdout, stderr := &bounded{limit: limit}, &bounded{limit: limit}
	tell := s.progress(ctx, req)
	cmd := c.Command(ctx, guest, t.Args...)
	cmd.Task = t
	cmd.Guest = guest
	cmd.Stdout, cmd.Stderr = io.MultiWriter(stdout, tell), io.MultiWriter(stderr, tell)
	notices := &bounded{limit: mostSaid}
	cmd.Notice = func(n string) { fmt.Fprintln(notices, line(n)) }
	if err := cmd.Start(); err != nil {
		return failure(err), nil, nil
	}
	err = cmd.Wait()
	id := cmd.Process.ID
	s.addLog(id)
	var exit *client.ExitError
	if err != nil && !errors.As(err, &exit) {
		return failure(err), nil, nil
	}
	return ran{note, guest, id, exit, stdout, stderr, notices, s.refused(ctx, c, guest, id)}.result(), nil, nil
}

// ran is a command that has ended: note, guest and task are our own words, all else
// the guest's.
type ran struct {
	note, guest, task       string
	exit                    *client.ExitError // nil: status 0
	stdout, stderr, notices *bounded
	refused                 []string
}

func (d ran) result() *sdk.CallToolResult {
	status, own := 0, "exit status 0"
	var parts []untrusted
	add := func(name, text string) {
		if text != "" {
			parts = append(parts, untrusted{name, text})
		}
	}
	if d.exit != nil {
		bare := *d.exit
		bare.Cause = "" // by the guest's word
		status, own = bare.Status, bare.Error()
		add("cause", cutAt(d.exit.Cause, mostSaid))
	}
	own = fmt.Sprintf("%s%s. Its whole output: %s", d.note, own, logURI(d.task))
	if n := d.stdout.dropped + d.stderr.dropped; n > 0 {
		own += fmt.Sprintf(" (%d bytes of it are left out below)", n)
	}
	// A guest names the hosts that it wants, and so may write sentences there.
	if n := len(d.refused); n > 0 {
		own += fmt.Sprintf(". It was not let out to %d hosts, which are named below: allow_host asks the user", n)
		add("hosts", strings.Join(d.refused, "\n"))
	}
	add("notices", d.notices.String())
	add("stdout", d.stdout.String())
	add("stderr", d.stderr.String())
	r := result(own, parts...)
	r.Meta = sdk.Meta{"carrel/status": status, "carrel/task": d.task, "carrel/guest": d.guest}
	r.IsError = status != 0
	return r
}

// task checks what the agent asked for.
func (s *session) task(in runInput) (client.Task, error) {
	t := client.Task{Args: in.Args, Dir: s.o.Dir, Env: in.Env, Timeout: usualTime}
	switch {
	case (in.Command == "") == (len(in.Args) == 0):
		return t, errors.New("give either command or args")
	case in.Command != "":
		t.Args = []string{"/bin/sh", "-c", in.Command}
	}
	if in.Dir != "" {
		p, err := s.path(in.Dir)
		if err != nil {
			return t, err
		}
		t.Dir = path.Clean(p)
	}
	if in.Timeout != 0 {
		t.Timeout = time.Duration(in.Timeout) * time.Second
		if in.Timeout < 0 || in.Timeout > int(mostTime/time.Second) {
			return t, fmt.Errorf("timeout_seconds is %d: 1 to %d are possible", in.Timeout, int(mostTime/time.Second))
		}
	}
	if in.Stdin != "" {
		t.Stdin = strings.NewReader(in.Stdin)
	}
	return t, t.Check()
}

func clamp(n, usual int) int {
	if n <= 0 {
		n = usual
	}
	return min(n, mostText)
}

// refused names the hosts that a task was not let out to. It is a courtesy: where
// it cannot be found out, nothing is said.
func (s *session) refused(ctx context.Context, c *client.Client, guest, task string) (hosts []string) {
	ctx, cancel := context.WithTimeout(ctx, refusedTime)
	defer cancel()
	_ = c.WatchEgress(ctx, guest, client.WatchOptions{Last: lookBack}, func(ev *api.EgressEvent) error {
		a := ev.GetVerdict().GetAction()
		denied := a == api.EgressAction_EGRESS_ACTION_UNSPECIFIED || a == api.EgressAction_EGRESS_ACTION_DENY
		if h := line(fmt.Sprintf("%s:%d", ev.GetHost(), ev.GetPort())); ev.GetKind() != api.EgressEventKind_EGRESS_EVENT_KIND_END &&
			ev.GetTask() == task && denied && !slices.Contains(hosts, h) && len(hosts) < maxRefused {
			hosts = append(hosts, h)
		}
		return nil
	})
	return hosts
}

// progress tells a client that asked for it how much a command has said so far.
func (s *session) progress(ctx context.Context, req *sdk.CallToolRequest) io.Writer {
	token := req.Params.GetProgressToken()
	if token == nil {
		return io.Discard
	}
	return &progress{ctx: ctx, session: req.Session, token: token, last: time.Now()}
}

// progress is written to from one goroutine.
type progress struct {
	ctx     context.Context
	session *sdk.ServerSession
	token   any
	n       int64
	last    time.Time
}

func (p *progress) Write(b []byte) (int, error) {
	p.n += int64(len(b))
	if now := time.Now(); now.Sub(p.last) >= progressEvery {
		p.last = now
		// A client that does not listen loses nothing but this.
		_ = p.session.NotifyProgress(p.ctx, &sdk.ProgressNotificationParams{ProgressToken: p.token, Progress: float64(p.n), Message: fmt.Sprintf("%d bytes of output", p.n)})
	}
	return len(b), nil
}
