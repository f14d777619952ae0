package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/client"
)

type egressFlags struct {
	follow bool
	last   int32
	answer string
	once   bool
	guest  bool
	always bool
	deny   bool
}

func (a *app) egressCommand() *cobra.Command {
	var f egressFlags
	cmd := &cobra.Command{
		Use:   "egress [flags] NAME",
		Short: "Show what a guest reached, and what it was not let out to",
		Long: `Show what a guest reached, and what it was not let out to, with the command that
would allow it. With -f go on; on a terminal, questions that a rule raises are
then answered with a key.`,
		Example:           "  carrel egress dev\n  carrel egress -f dev\n  carrel egress dev --answer q1-5f4d --once\n  carrel egress dev --answer q1-5f4d --always",
		Args:              names(arguments(1, 1)),
		ValidArgsFunction: guestNames(1),
		RunE:              func(cmd *cobra.Command, args []string) error { return a.doEgress(cmd.Context(), &f, args[0]) },
	}
	fs := cmd.Flags()
	fs.BoolVarP(&f.follow, "follow", "f", false, "go on with what happens")
	fs.Int32VarP(&f.last, "lines", "n", 0, "show the last `N` only (default: all that are kept, 1024)")
	fs.StringVar(&f.answer, "answer", "", "answer the question with this `ID`, with one of the next four")
	fs.BoolVar(&f.once, "once", false, "yes, this time")
	fs.BoolVar(&f.guest, "guest", false, "yes, as long as this guest exists")
	fs.BoolVar(&f.always, "always", false, "yes, for every guest: it is written into policy.yaml")
	fs.BoolVar(&f.deny, "deny", false, "no")
	fs.Bool("json", false, "print one JSON object per line")
	return cmd
}

// given are the answers that the flags hold.
func (f *egressFlags) given() (answers []api.EgressAnswer) {
	for _, x := range []struct {
		on bool
		is api.EgressAnswer
	}{
		{f.once, api.EgressAnswer_EGRESS_ANSWER_ONCE}, {f.guest, api.EgressAnswer_EGRESS_ANSWER_GUEST},
		{f.always, api.EgressAnswer_EGRESS_ANSWER_ALWAYS}, {f.deny, api.EgressAnswer_EGRESS_ANSWER_DENY},
	} {
		if x.on {
			answers = append(answers, x.is)
		}
	}
	return answers
}

func (a *app) doEgress(ctx context.Context, f *egressFlags, name string) error {
	answers := f.given()
	switch {
	case f.answer == "" && len(answers) > 0:
		return usageError{errors.New("--answer is missing: which question is meant?")}
	case f.answer != "" && len(answers) != 1:
		return usageError{errors.New("--answer needs one of --once, --guest, --always and --deny")}
	case f.last < 0:
		return usageError{errors.New("-n must not be negative")}
	}
	c, err := a.connect(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	if len(answers) > 0 {
		return c.AnswerEgress(ctx, name, f.answer, answers[0])
	}
	o := client.WatchOptions{Follow: f.follow, Last: f.last}
	if a.json {
		return c.WatchEgress(ctx, name, o, func(ev *api.EgressEvent) error { return a.printJSON(ev) })
	}
	if f.follow && term.IsTerminal(int(a.in.Fd())) && term.IsTerminal(int(a.out.Fd())) {
		return a.answerEgress(ctx, c, name, o)
	}
	return c.WatchEgress(ctx, name, o, func(ev *api.EgressEvent) error {
		_, err := io.WriteString(a.out, eventText(ev, width(a.out)))
		return err
	})
}

// eventText shows a verdict in one line, which width cuts (0: not), and what
// would change it in a second one, which nothing cuts.
func eventText(ev *api.EgressEvent, width int) string {
	v := ev.GetVerdict()
	if ev.GetKind() == api.EgressEventKind_EGRESS_EVENT_KIND_UNSPECIFIED {
		return safe(v.GetReason()) + "\n"
	}
	word := actionWord(v.GetAction())
	switch ev.Kind {
	case api.EgressEventKind_EGRESS_EVENT_KIND_END:
		word = "end"
	case api.EgressEventKind_EGRESS_EVENT_KIND_QUESTION:
		word = "ask"
	}
	at := ev.GetTime().AsTime().Local().Format(time.TimeOnly)
	line := fmt.Sprintf("%s  %-6s  %-5s  %s", at, shortTask(ev.Task), word, safe(destination(ev)))
	if ev.Method != "" || ev.Path != "" {
		line += "  " + safe(ev.Method+" "+ev.Path)
	}
	if ev.Secret != "" {
		line += "  secret " + safe(ev.Secret)
	}
	if o := v.GetRule().GetOrigin(); o != "" {
		line += "  " + safe(o)
	}
	if ev.Kind == api.EgressEventKind_EGRESS_EVENT_KIND_END {
		line += fmt.Sprintf("  %s up, %s down, %v", humanize.IBytes(uint64(max(ev.BytesUp, 0))), humanize.IBytes(uint64(max(ev.BytesDown, 0))), ms(ev.DurationNanos))
	}
	if (word == "deny" || word == "end") && v.GetReason() != "" { // an end has one where it failed
		line += "  " + safe(v.GetReason())
	}
	if width > 0 {
		line = clip(line, width)
	}
	line += "\n"
	if v.GetCure() != "" && (word == "deny" || word == "ask") {
		what := "allow it: "
		if word == "ask" {
			what = "answer: "
		}
		line += strings.Repeat(" ", 18) + what + safe(v.GetCure()) + "\n"
	}
	return line
}

// shortTask is the end of a task's id, which tells tasks apart.
func shortTask(id string) string {
	const n = 6
	switch {
	case id == "":
		return "-"
	case len(id) > n:
		id = id[len(id)-n:]
	}
	return safe(id)
}

func destination(ev *api.EgressEvent) string {
	host := ev.GetHost()
	if strings.Contains(host, ":") {
		host = "[" + host + "]"
	}
	return fmt.Sprintf("%s:%d", host, ev.GetPort())
}

// questions are those that were shown and not answered, the oldest first.
type questions struct {
	mu   sync.Mutex
	open []*api.EgressEvent
}

func (q *questions) add(ev *api.EgressEvent) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.open = append(q.open, ev)
}

// first takes the oldest question, or returns nil.
func (q *questions) first() *api.EgressEvent {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.open) == 0 {
		return nil
	}
	ev := q.open[0]
	q.open = q.open[1:]
	return ev
}

// questionAge is how long a question waits: an older one has timed out.
const questionAge = time.Minute

// answerEgress follows a guest and takes answers by key from the terminal.
func (a *app) answerEgress(ctx context.Context, c *client.Client, name string, o client.WatchOptions) error {
	fd := int(a.in.Fd())
	old, err := term.MakeRaw(fd)
	if err != nil {
		return fmt.Errorf("make the terminal raw: %w", err)
	}
	defer term.Restore(fd, old)
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var mu sync.Mutex // for the terminal
	say := func(s string) {
		mu.Lock()
		defer mu.Unlock()
		io.WriteString(a.out, strings.ReplaceAll(s, "\n", "\r\n")) // a raw terminal returns no carriage
	}
	var q questions
	// Not waited for: a read of a terminal cannot be called off.
	go a.answerKeys(ctx, cancel, c, name, &q, say)
	err = c.WatchEgress(ctx, name, o, func(ev *api.EgressEvent) error {
		say(eventText(ev, width(a.out)))
		if ev.Question != "" && ev.Kind == api.EgressEventKind_EGRESS_EVENT_KIND_QUESTION && time.Since(ev.GetTime().AsTime()) < questionAge {
			q.add(ev)
			say(mayReach(ev))
		}
		return nil
	})
	if errors.Is(context.Cause(ctx), errDone) {
		return nil
	}
	return err
}

// mayReach asks about a connection, and says in a line of its own which keys answer.
func mayReach(ev *api.EgressEvent) string {
	return "carrel: may it reach " + safe(destination(ev)) + "?\n        y: this time  g: this guest  a: always  n: no\n"
}

// answerKeys takes a key for each question that was shown.
func (a *app) answerKeys(ctx context.Context, cancel context.CancelCauseFunc, c *client.Client, name string, q *questions, say func(string)) {
	var b [1]byte
	for ctx.Err() == nil {
		if n, err := a.in.Read(b[:]); n == 0 || err != nil {
			return
		}
		if b[0] == 3 || b[0] == 4 || b[0] == 'q' { // Ctrl-C, which raw terminals pass on as it is, and Ctrl-D
			cancel(errDone)
			return
		}
		answer, is := map[byte]api.EgressAnswer{
			'y': api.EgressAnswer_EGRESS_ANSWER_ONCE, 'g': api.EgressAnswer_EGRESS_ANSWER_GUEST,
			'a': api.EgressAnswer_EGRESS_ANSWER_ALWAYS, 'n': api.EgressAnswer_EGRESS_ANSWER_DENY,
		}[b[0]]
		if !is {
			continue
		}
		ev := q.first()
		if ev == nil {
			continue
		}
		if err := c.AnswerEgress(ctx, name, ev.Question, answer); err != nil {
			say("carrel: " + safe(err.Error()) + "\n")
			continue
		}
		say("carrel: " + safe(destination(ev)) + ": " + strings.ToLower(strings.TrimPrefix(answer.String(), "EGRESS_ANSWER_")) + "\n")
	}
}

// errDone ends what was being watched; it is no failure.
var errDone = errors.New("done")
