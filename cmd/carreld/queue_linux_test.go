package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"connectrpc.com/connect"
	"golang.org/x/sys/unix"

	"github.com/carrel-vm/carrel/guest"
	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/client"
)

// policy writes the home's policy.yaml.
func (w *world) policy(text string) {
	w.t.Helper()
	if err := os.MkdirAll(filepath.Join(w.home, "config"), 0o700); err != nil {
		w.t.Fatal(err)
	}
	write(w.t, filepath.Join(w.home, "config", "policy.yaml"), text)
}

func (w *world) memory(mib string) {
	w.t.Helper()
	write(w.t, filepath.Join(w.work, "memory"), mib)
}

// detailOf is what the daemon attached to an error.
func detailOf(err error) *api.ErrorDetail {
	var ce *connect.Error
	if errors.As(err, &ce) {
		for _, d := range ce.Details() {
			if v, err := d.Value(); err == nil {
				if e, ok := v.(*api.ErrorDetail); ok {
					return e
				}
			}
		}
	}
	return &api.ErrorDetail{}
}

// A start for which the host has no memory is refused before anything of it is
// made, whoever asks and cold or warm; it is taken when there is memory.
func TestStartMemory(t *testing.T) {
	w := newRing2(t)
	w.env = []string{"CARREL_TEST_MEMORY=" + filepath.Join(w.work, "memory")}
	w.memory("4000 16000") // of which 800 stay
	w.start()
	c := w.raw()
	begin := func(name string, mib uint32) error {
		_, err := c.start(t.Context(), &api.StartGuestRequest{Spec: &api.GuestSpec{Name: name, MemoryMib: mib}})
		return err
	}
	for _, name := range []string{"one", "two"} {
		if err := begin(name, 0); err != nil {
			t.Fatalf("the control: %v", err)
		}
	}
	err := begin("three", 0)
	d := detailOf(err)
	if d.Code != "host_memory" || connect.CodeOf(err) != connect.CodeResourceExhausted || !strings.Contains(d.Cause, "one 2.0 GiB") || !strings.Contains(d.Cause, "2.0 GiB of memory") || !strings.Contains(d.Cure, "--memory") {
		t.Errorf("one too many: %v: %v", err, d)
	}
	if left, _ := filepath.Glob(filepath.Join(w.home, "state", "guests", "three*")); len(left) > 0 {
		t.Errorf("left over: %v", left)
	}
	gs, err := c.guests.List(t.Context(), connect.NewRequest(&api.ListGuestsRequest{}))
	if err != nil || len(gs.Msg.Guests) != 2 {
		t.Errorf("guests: %v %v", gs, err)
	}
	if err := begin("small", 256); err != nil {
		t.Errorf("less: %v", err)
	}
	// The next daemon counts what it adopts.
	w.kill()
	w.start()
	c = w.raw()
	if err := begin("three", 0); word(err) != "host_memory" {
		t.Errorf("with the next daemon: %v", err)
	}
	if _, err := w.client().StopGuest(t.Context(), "one", time.Second); err != nil {
		t.Fatal(err)
	}
	if err := begin("three", 0); err != nil {
		t.Errorf("when one was stopped: %v", err)
	}
	w.memory("900 16000")
	if err := begin("one", 0); word(err) != "host_memory" {
		t.Errorf("a stopped guest again: %v", err)
	}
	w.memory("9000 16000")
	w.policy("version: 1\nlimits: {guests: 3}\n")
	if err := begin("one", 0); word(err) != "too_many_guests" || !strings.Contains(detailOf(err).Cure, "limits.guests") {
		t.Errorf("a fourth of three: %v", err)
	}
	w.policy("version: 1\nlimits: {guests: 4}\n")
	if err := begin("one", 0); err != nil {
		t.Errorf("a fourth of four: %v", err)
	}
}

// A guest of the pool gives way to somebody's.
func TestStartMemoryPool(t *testing.T) {
	w := newRing2(t)
	w.env = []string{"CARREL_TEST_MEMORY=" + filepath.Join(w.work, "memory")}
	w.memory("700 4000") // of which 200 stay
	w.policy(onePool)
	w.start()
	eventually(t, "a guest is warm", func() bool { return warmOnes(t, w) == 1 })
	c := w.raw()
	big := &api.GuestSpec{Name: "big", MemoryMib: 330}
	if _, err := c.start(t.Context(), &api.StartGuestRequest{Spec: big}); err != nil {
		t.Errorf("beside a warm one that could go: %v", err)
	}
	if n := warmOnes(t, w); n != 0 {
		t.Errorf("%d are still warm", n)
	}
	if _, err := c.start(t.Context(), &api.StartGuestRequest{Spec: &api.GuestSpec{Name: "more", MemoryMib: 330}}); word(err) != "host_memory" {
		t.Errorf("the control: %v", err)
	}
}

func warmOnes(t *testing.T, w *world) int {
	t.Helper()
	s, err := w.client().Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return int(s.GuestsWarm)
}

// waiting is a start that waits or goes on.
type waiting struct {
	name  string
	told  chan int64 // how many go before it
	ended chan error
	stop  context.CancelFunc
}

// oneByOne is a world in which one guest starts at a time, and each start waits to be
// let through.
type oneByOne struct {
	*world
	fifo string
}

func newOneByOne(t *testing.T, limits string) *oneByOne {
	w := &oneByOne{world: newRing2(t)}
	w.fifo = filepath.Join(w.work, "memory")
	if err := unix.Mkfifo(w.fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	w.env = []string{"CARREL_TEST_MEMORY=" + w.fifo}
	w.policy("version: 1\nlimits: {" + limits + "}\n")
	w.start()
	return w
}

// asks waits until a start asks how much memory there is, and returns where to
// answer. Until then it stands still.
func (w *oneByOne) asks() (f *os.File) {
	w.t.Helper()
	eventually(w.t, "a start asks how much memory there is", func() bool {
		var err error
		f, err = os.OpenFile(w.fifo, os.O_WRONLY|unix.O_NONBLOCK, 0)
		if err != nil && !errors.Is(err, unix.ENXIO) { // nobody reads it
			w.t.Fatal(err)
		}
		return err == nil
	})
	return f
}

// through lets one start through.
func (w *oneByOne) through() {
	w.t.Helper()
	f := w.asks()
	defer f.Close()
	if _, err := fmt.Fprint(f, "100000 200000"); err != nil {
		w.t.Fatal(err)
	}
}

func (w *oneByOne) begin(c *raw, req *api.StartGuestRequest) *waiting {
	ctx, stop := context.WithCancel(w.t.Context())
	return w.beginIn(ctx, stop, c, req)
}

func (w *oneByOne) beginIn(ctx context.Context, stop func(), c *raw, req *api.StartGuestRequest) *waiting {
	x := &waiting{name: req.Spec.Name, told: make(chan int64, 100), ended: make(chan error, 1), stop: stop}
	go func() {
		st, err := c.guests.Start(ctx, connect.NewRequest(req))
		if err != nil {
			x.ended <- err
			return
		}
		defer st.Close()
		for st.Receive() {
			if p := st.Msg().GetProgress(); p.GetStage() == "waiting" {
				x.told <- p.Ahead
			}
		}
		x.ended <- st.Err()
	}()
	return x
}

func (w *oneByOne) named(c *raw, name string) *waiting {
	return w.begin(c, &api.StartGuestRequest{Spec: &api.GuestSpec{Name: name, DiskMib: 64}})
}

func (w *oneByOne) hears(x *waiting, want int64) {
	w.t.Helper()
	for {
		select {
		case n := <-x.told:
			if n == want {
				return
			}
		case err := <-x.ended:
			w.t.Fatalf("%s ended: %v", x.name, err)
		case <-time.After(patience):
			w.t.Fatalf("%s is not told that it waits for %d", x.name, want)
		}
	}
}

// end is what x ended with.
func (w *oneByOne) end(x *waiting) error {
	w.t.Helper()
	select {
	case err := <-x.ended:
		return err
	case <-time.After(patience):
		w.t.Fatalf("%s does not end", x.name)
		return nil
	}
}

func (w *oneByOne) starts(x *waiting) {
	w.t.Helper()
	w.through()
	if err := w.end(x); err != nil {
		w.t.Fatalf("%s, whose turn it is: %v", x.name, err)
	}
}

// placed begins a start until it has a place, and hears how many go before it. The
// daemon takes out one that went away when it hears of it, and not before.
func (w *oneByOne) placed(c *raw, name string, ahead int64) (x *waiting) {
	w.t.Helper()
	eventually(w.t, name+" finds a place", func() bool {
		x = w.named(c, name)
		select {
		case n := <-x.told:
			x.told <- n
			return true
		case err := <-x.ended:
			if word(err) != "queue_full" {
				w.t.Fatalf("%s: %v", name, err)
			}
		case <-time.After(patience):
			w.t.Fatalf("%s is told nothing", name)
		}
		return false
	})
	w.hears(x, ahead)
	return x
}

// Starts wait for their turn, each session in its turn; who goes away frees the
// place at once, and who finds none is refused.
func TestStartQueue(t *testing.T) {
	w := newOneByOne(t, "starts: 1, waiting: 8")
	c := w.raw()
	a1 := w.named(c, "a1")
	f := w.asks() // it is its turn
	var a []*waiting
	for i := range 4 {
		x := w.named(c, fmt.Sprint("a", i+2))
		w.hears(x, int64(i+1))
		a = append(a, x)
	}
	full := w.named(c, "a6")
	if err := w.end(full); word(err) != "queue_full" || detailOf(err).RetryNanos <= 0 || connect.CodeOf(err) != connect.CodeResourceExhausted {
		t.Errorf("no place for this session: %v: %v", err, detailOf(err))
	}
	// Another session still finds a place, and comes before most.
	var said bytes.Buffer
	patient, cancel := context.WithTimeout(t.Context(), 2*patience)
	defer cancel()
	other := exec.CommandContext(patient, filepath.Join(w.bin, "carrel"), "start", "--no-share", "b1")
	other.Env = append(os.Environ(), "CARREL_HOME="+w.home)
	other.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	pr, pw, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	other.Stderr = pw
	if err := other.Start(); err != nil {
		t.Fatal(err)
	}
	pw.Close()
	defer pr.Close()
	if err := pr.SetReadDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	line := make([]byte, 200)
	for !strings.Contains(said.String(), "\n") {
		n, err := pr.Read(line)
		if err != nil {
			t.Fatal(err, said.String())
		}
		said.Write(line[:n])
	}
	if !strings.Contains(said.String(), "waiting for 2 others") {
		t.Errorf("carrel start says %q", said.String())
	}
	// A deadline and a caller that goes away free the places.
	a[1].stop()
	if err := w.end(a[1]); connect.CodeOf(err) != connect.CodeCanceled {
		t.Errorf("one that gave up: %v", err)
	}
	w.hears(a[2], 3)
	begun := time.Now()
	for limit := 50 * time.Millisecond; ; limit *= 2 { // until it waits when its time is over
		short, cancel := context.WithTimeout(t.Context(), limit)
		x := w.beginIn(short, cancel, w.raw(), &api.StartGuestRequest{Spec: &api.GuestSpec{Name: "a7"}})
		err := w.end(x)
		cancel()
		if len(x.told) > 0 && connect.CodeOf(err) == connect.CodeDeadlineExceeded {
			break
		}
		// Too short, or the one before is still there.
		if connect.CodeOf(err) != connect.CodeDeadlineExceeded && word(err) != "queue_full" || time.Since(begun) > patience {
			t.Fatalf("one with a deadline of %v was told its place %d times: %v", limit, len(x.told), err)
		}
	}
	late := w.placed(c, "a6", 5)
	fmt.Fprint(f, "100000 200000")
	f.Close()
	if err := w.end(a1); err != nil {
		t.Fatal(err)
	}
	w.starts(a[0])
	w.through()
	if err := other.Wait(); err != nil {
		t.Fatalf("b1 does not start next: %v", err)
	}
	w.starts(a[2])
	w.starts(a[3])
	w.starts(late)
	gs, err := c.guests.List(t.Context(), connect.NewRequest(&api.ListGuestsRequest{}))
	if err != nil || len(gs.Msg.Guests) != 6 {
		t.Errorf("%d guests: %v", len(gs.Msg.Guests), err)
	}
	tr, err := c.guests.Trace(t.Context(), connect.NewRequest(&api.TraceGuestRequest{Name: "a5"}))
	if err != nil || !strings.Contains(fmt.Sprint(tr.Msg.Spans), "waited for its turn") {
		t.Errorf("the trace does not say that it waited: %v %v", tr, err)
	}
}

// A daemon that dies while starts wait leaves nothing of them; what runs goes on,
// and who asks again with its key has one guest.
func TestStartQueueKilled(t *testing.T) {
	w := newOneByOne(t, "starts: 1")
	c := w.raw()
	box := w.named(c, "box")
	w.starts(box)
	held := w.named(c, "held")
	defer w.asks().Close()
	req := &api.StartGuestRequest{Spec: &api.GuestSpec{DiskMib: 64}, IdempotencyKey: "k"}
	keyed := w.begin(c, req)
	w.hears(keyed, 1)
	other := w.named(c, "other")
	w.hears(other, 2)
	w.kill()
	for _, x := range []*waiting{held, keyed, other} {
		if err := w.end(x); err == nil {
			t.Errorf("%s was acknowledged", x.name)
		}
	}
	w.env = nil
	w.start()
	c = w.raw()
	names := func() (all []string) {
		gs, err := c.guests.List(t.Context(), connect.NewRequest(&api.ListGuestsRequest{}))
		if err != nil {
			t.Fatal(err)
		}
		for _, g := range gs.Msg.Guests {
			if g.State != api.GuestState_GUEST_STATE_READY {
				eventually(t, "guest "+g.Name+" is adopted", func() bool {
					r, err := c.guests.Inspect(t.Context(), connect.NewRequest(&api.InspectGuestRequest{Name: g.Name}))
					return err == nil && r.Msg.Guest.State == api.GuestState_GUEST_STATE_READY
				})
			}
			all = append(all, g.Name)
		}
		return all
	}
	if got := names(); len(got) != 1 || got[0] != "box" {
		t.Errorf("guests: %v", got)
	}
	if left, _ := os.ReadDir(filepath.Join(w.home, "state", "guests")); len(left) != 1 {
		t.Errorf("left over: %v", left)
	}
	for range 2 {
		if _, err := c.start(t.Context(), req); err != nil {
			t.Fatal(err)
		}
	}
	if got := names(); len(got) != 2 {
		t.Errorf("asked again with the key: %v", got)
	}
}

// Where as many tasks run as may, one that waits gets the next place; one that does
// not wait gets none before it.
func TestTaskQueue(t *testing.T) {
	w := newRing2(t)
	w.start()
	c := w.client()
	w.guest(c, "box")
	var last *client.Process
	for range guest.MaxTasks {
		var err error
		if last, err = c.StartTask(t.Context(), client.Task{Guest: "box", Args: []string{"sleep", "1000"}}); err != nil {
			t.Fatal(err)
		}
	}
	r := w.raw()
	ask := func(ctx context.Context, wait bool, key string) (*api.Task, error) {
		return r.run(ctx, &api.StartTaskRequest{Guest: "box", Wait: wait, IdempotencyKey: key, Spec: &api.TaskSpec{Argv: []string{"sleep", "1000"}}})
	}
	short, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := ask(short, true, ""); connect.CodeOf(err) != connect.CodeDeadlineExceeded {
		t.Errorf("a deadline: %v", err)
	}
	type answer struct {
		t   *api.Task
		err error
	}
	got := make(chan answer, 1)
	go func() {
		x, err := ask(t.Context(), true, "k")
		got <- answer{x, err}
	}()
	eventually(t, "who does not wait is told that others do", func() bool {
		_, err := ask(t.Context(), false, "")
		if word(err) != "too_many_tasks" {
			t.Fatalf("one too many: %v", err)
		}
		return strings.Contains(err.Error(), "others wait")
	})
	if _, err := r.tasks.Cancel(t.Context(), connect.NewRequest(&api.CancelTaskRequest{Guest: "box", Task: last.ID, GraceNanos: -1})); err != nil {
		t.Fatal(err)
	}
	var a answer
	select {
	case a = <-got:
	case <-time.After(patience):
		t.Fatal("one that waits is not given the place")
	}
	if a.err != nil {
		t.Fatalf("one that waited: %v", a.err)
	}
	if again, err := ask(t.Context(), false, "k"); err != nil || again.Id != a.t.Id { // how to ask is no part of what is asked for
		t.Errorf("asked again with its key: %v %v", again, err)
	}
	if list, err := c.Tasks(t.Context(), "box"); err != nil || len(list) != guest.MaxTasks+1 {
		t.Errorf("%d tasks: %v", len(list), err)
	}
}
