package egress

import (
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/policy"
	"github.com/carrel-vm/carrel/guest/wire"
)

// maxReason bounds a reason, in bytes.
const maxReason = 400

// text makes one line of printable ASCII, which every protocol can carry.
func text(s string, max int) string {
	return strings.Map(func(r rune) rune {
		if r > '~' {
			return '?'
		}
		return r
	}, wire.Text(s, max))
}

// refusal is a decision against a connection or a request.
type refusal struct {
	// rule is the one that decided, if one did.
	rule *api.EgressRule
	// reason is one sentence.
	reason string
	// cure is a command that would change it, or empty.
	cure string
	// failed: the rules allowed it, but it could not be done.
	failed bool
}

func (r *refusal) Error() string { return r.reason }

// deny makes a refusal of a verdict, with the command that would change it.
func (c *conn) deny(v policy.Verdict, r *policy.Request) *refusal {
	no := &refusal{rule: v.Rule, reason: v.Reason}
	switch {
	case v.Rule != nil:
		// A rule says no, or nobody said yes: no other rule would change that.
	case r == nil:
		no.cure = c.allow("")
	default:
		no.cure = c.allow(" --method " + shell(c.s.hide(r.Method)) + " --path " + shell(c.s.hide(r.Path)))
	}
	return no
}

// allow is the command that allows the connection's destination.
func (c *conn) allow(flags string) string {
	if c.dest.Host == (policy.Host{}) {
		return ""
	}
	to := c.dest.String()
	if c.dest.Port == 443 {
		to = c.dest.Host.String()
	}
	return "carrel allow " + c.s.opts.Guest + " " + to + flags
}

// shell quotes a word that the guest wrote for use in a command line.
func shell(s string) string {
	s = text(s, 200)
	plain := func(r rune) bool {
		return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("/._-", r)
	}
	if s != "" && strings.IndexFunc(s, func(r rune) bool { return !plain(r) }) < 0 {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}

// line says a refusal in one line, to a tool or a task.
func (c *conn) line(no *refusal) string {
	where := c.host
	if c.dest.Host != (policy.Host{}) {
		where = c.dest.String()
	}
	if no.failed {
		return text(c.s.hide("carrel: "+where+" was not reached: "+no.reason), wire.MaxText)
	}
	l := "carrel: egress to " + where + " is not allowed"
	if no.cure != "" {
		l += " (" + no.cure + ")"
	}
	if no.reason != "" {
		l += ": " + no.reason
	}
	return text(c.s.hide(l), wire.MaxText)
}

// teller tells tasks of refusals: the first of a kind at once, those like it
// in the next seconds as one number.
type teller struct {
	out func(task, line string)

	mu     sync.Mutex
	open   map[[2]string]*told
	lost   int
	closed bool
}

type told struct {
	line  string
	more  int
	timer *time.Timer
}

func (t *teller) init(out func(task, line string)) {
	t.out, t.open = out, map[[2]string]*told{}
}

// tell tells a task one line.
func (t *teller) tell(task, line string) {
	if t.out == nil {
		return
	}
	key := [2]string{task, line}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return
	}
	if k := t.open[key]; k != nil {
		k.more++
		return
	}
	if len(t.open) >= maxRefusals {
		t.lost++
		return
	}
	k := &told{line: line}
	t.open[key] = k
	k.timer = time.AfterFunc(sameRefusal, func() { t.flush(key, k) })
	t.out(task, line)
}

// flush ends the time in which refusals like one are only counted.
func (t *teller) flush(key [2]string, k *told) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return
	}
	delete(t.open, key)
	if k.more > 0 {
		t.out(key[0], fmt.Sprintf("%s (%d more times in %d s)", k.line, k.more, int(sameRefusal.Seconds())))
	}
	if t.lost > 0 {
		t.out("", fmt.Sprintf("carrel: %d refusals were not told one by one", t.lost))
		t.lost = 0
	}
}

func (t *teller) close() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.closed = true
	for _, k := range t.open {
		k.timer.Stop()
	}
}
