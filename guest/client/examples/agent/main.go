// Command agent shows a whole agent on the Go SDK: it mends a repository in a guest.
//
//	agent [--boundary process] FOLDER
//
// A model says what to do next, the loop does it in the guest and tells the model
// what came of it. The person is asked twice over: whether the guest may reach a
// host, while it waits for that, and at the end whether what it changed may come
// into the folder. The model here is a script: put a real one in its place.
package main

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/client"
)

func main() {
	log.SetFlags(0)
	boundary := flag.String("boundary", "", "the wall: vm, gvisor or process")
	flag.Parse()
	if flag.NArg() != 1 {
		log.Fatal("usage: agent [--boundary WALL] FOLDER")
	}
	folder, err := filepath.Abs(flag.Arg(0))
	if err == nil {
		folder, err = filepath.EvalSymlinks(folder)
	}
	if err == nil {
		err = mend(context.Background(), folder, *boundary, &script{}, &person{in: bufio.NewReader(os.Stdin), out: os.Stdout})
	}
	if err != nil {
		log.Fatal(err)
	}
}

// mend is the whole life of one piece of work.
func mend(ctx context.Context, folder, boundary string, m model, p *person) error {
	c, err := client.Connect(ctx, client.Options{})
	if err != nil {
		return err
	}
	defer c.Close()
	s, err := c.StartSession(ctx, &api.GuestSpec{
		Boundary: boundary,
		Shares:   []*api.Share{{Path: folder, Mode: api.ShareMode_SHARE_MODE_REVIEW}},
		// Every host is asked about; one that is not named is refused.
		Egress: &api.EgressSpec{Rules: []*api.EgressRule{
			{Action: api.EgressAction_EGRESS_ACTION_ASK, Host: "docs.example"},
			{Action: api.EgressAction_EGRESS_ACTION_ASK, Host: "paste.example"},
		}},
	}, client.GuestOptions{})
	if err != nil {
		return err
	}
	defer s.Close()
	guest := s.Guest.Name

	// Questions are answered while the guest works: a connection waits for it.
	watching, stop := context.WithCancel(ctx)
	var watcher sync.WaitGroup
	defer watcher.Wait()
	defer stop()
	watcher.Go(func() {
		err := c.WatchEgress(watching, guest, client.WatchOptions{Follow: true}, func(ev *api.EgressEvent) error {
			if ev.Kind != api.EgressEventKind_EGRESS_EVENT_KIND_QUESTION {
				return nil
			}
			answer := api.EgressAnswer_EGRESS_ANSWER_DENY
			if p.yes(fmt.Sprintf("May the guest reach %q, port %d, once?", ev.Host, ev.Port)) {
				answer = api.EgressAnswer_EGRESS_ANSWER_ONCE
			}
			err := c.AnswerEgress(ctx, guest, ev.Question, answer)
			if client.CodeOf(err) == "no_question" { // it waits a minute; the guest was told no
				p.say("  too late: nobody waits for this answer any more")
				return nil
			}
			return err
		})
		if err != nil && watching.Err() == nil {
			log.Print(err)
		}
	})

	files, err := c.Files(ctx, guest, folder, "")
	if err != nil {
		return err
	}
	if err := loop(ctx, c, guest, folder, files, m, p); err != nil {
		return err
	}
	return review(ctx, c, guest, p)
}

// maxSteps bounds the loop: a model may go round in circles.
const maxSteps = 50

func loop(ctx context.Context, c *client.Client, guest, folder string, files *client.Files, m model, p *person) error {
	seen := "Mend the repository so that its tests pass."
	for range maxSteps {
		act := m.next(seen)
		p.say("* " + act.String())
		switch {
		case act.done:
			return nil
		case act.write != "":
			if err := files.WriteFile(act.write, []byte(act.content), 0o644); err != nil {
				seen = err.Error()
				continue
			}
			seen = "written"
		case act.read != "":
			b, err := files.ReadFile(act.read)
			if err != nil {
				seen = err.Error()
				continue
			}
			seen = string(b)
		default:
			cmd := c.Command(ctx, guest, act.run...)
			cmd.Dir = folder
			out := &first{limit: 64 << 10}
			cmd.Stdout, cmd.Stderr = out, out
			err := cmd.Run()
			var exit *client.ExitError
			if err != nil && !errors.As(err, &exit) {
				return err
			}
			seen = fmt.Sprintf("status %d\n%s", status(exit), out.b.String())
			p.say("  status " + strconv.Itoa(status(exit)))
		}
	}
	return errors.New("the model did not come to an end")
}

func status(e *client.ExitError) int {
	if e == nil {
		return 0
	}
	return e.Status
}

// review shows what waits, asks, and applies exactly what was shown.
func review(ctx context.Context, c *client.Client, guest string, p *person) error {
	var shown [][]byte
	err := c.Diff(ctx, guest, client.DiffOptions{}, func(ch *api.Change) error {
		p.say(fmt.Sprintf("%q\n%s", ch.Path, printable(ch.Diff)))
		if ch.Warning == "" { // what programs here obey stays in the guest
			shown = append(shown, ch.Seen)
		}
		return nil
	})
	if err != nil || len(shown) == 0 {
		return err
	}
	if !p.yes("Apply this?") {
		_, err := c.Discard(ctx, guest)
		return err
	}
	return c.Apply(ctx, guest, client.ApplyOptions{Seen: shown}, func(ev *api.ApplyEvent) error {
		if ev.Refused != "" {
			p.say(fmt.Sprintf("left: %q: %s", ev.Path, ev.Refused))
			return nil
		}
		p.say(fmt.Sprintf("applied: %q", ev.Path))
		return nil
	})
}

// person is whoever sits here.
type person struct {
	mu  sync.Mutex // one question at a time
	in  *bufio.Reader
	out io.Writer
}

func (p *person) say(line string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	fmt.Fprintln(p.out, line)
}

func (p *person) yes(question string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	fmt.Fprint(p.out, question+" [y/N] ")
	answer, _ := p.in.ReadString('\n')
	fmt.Fprintln(p.out)
	return strings.TrimSpace(answer) == "y"
}

// printable keeps a guest's words from steering the terminal.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r != '\n' && r != '\t' && !strconv.IsPrint(r) {
			return '?'
		}
		return r
	}, s)
}

// first keeps the beginning of what is written to it: a guest writes as much as it
// likes.
type first struct {
	b     strings.Builder
	limit int
}

func (f *first) Write(p []byte) (int, error) {
	f.b.Write(p[:min(len(p), f.limit-f.b.Len())])
	return len(p), nil
}
