//go:build unix

package daemon

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/encoding/protodelim"
	"google.golang.org/protobuf/proto"

	"github.com/carrel-vm/carrel/guest"
	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/api/apiconnect"
	"github.com/carrel-vm/carrel/guest/review"
	sharerules "github.com/carrel-vm/carrel/guest/share/rules"
)

// TestMain is also the review process of these tests.
func TestMain(m *testing.M) {
	if len(os.Args) == 3 && os.Args[1] == "review" {
		os.Exit(fakeReview(os.Args[2]))
	}
	os.Exit(m.Run())
}

// fakeStore is a file that stands for all of a guest's stores.
type fakeStore struct {
	Changes  []string
	Undoable int32
	// Does is what goes wrong: "hang", "die", "huge", "refuse".
	Does string
	// Saw is the last request.
	Saw []review.ShareRef
}

func (s *fakeStore) load(path string) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	return json.Unmarshal(b, s)
}

func (s *fakeStore) save(path string) error {
	b, err := json.Marshal(s)
	if err != nil {
		return err
	}
	if err := os.WriteFile(fmt.Sprint(path, os.Getpid()), b, 0o600); err != nil {
		return err
	}
	return os.Rename(fmt.Sprint(path, os.Getpid()), path) // others read it at this moment
}

func fakeReview(path string) int {
	in, out := os.NewFile(3, "request"), os.NewFile(4, "answers")
	a := review.NewAnswers(out)
	req, err := review.ReadRequest(in)
	var s fakeStore
	if err == nil {
		err = s.load(path)
	}
	if err != nil {
		a.End(err)
		return 1
	}
	saw := fakeStore{Saw: req.Shares}
	saw.save(path + ".saw")
	var ms []proto.Message
	switch {
	case req.Summary != nil:
		ms = append(ms, &api.ReviewSummary{Added: int32(len(s.Changes)), Undoable: s.Undoable})
	case req.Diff != nil:
		for _, c := range s.Changes {
			ms = append(ms, &api.Change{Path: c, Kind: api.ChangeKind_CHANGE_KIND_ADDED})
		}
	case req.Apply != nil:
		for _, c := range s.Changes {
			ms = append(ms, &api.ApplyEvent{Path: c, Kind: api.ChangeKind_CHANGE_KIND_ADDED})
		}
		s.Changes, s.Undoable = nil, 1
		s.save(path)
	case req.Discard != nil:
		ms = append(ms, &api.DiscardResponse{Discarded: int32(len(s.Changes))})
		s.Changes = nil
		s.save(path)
	case req.Undo != nil:
		s.Undoable = 0
		s.save(path)
	}
	switch s.Does {
	case "hang":
		for a.Emit(&api.Change{Path: "/again"}) == nil {
		}
		return 0
	case "die":
		if req.Recover == nil {
			return 1
		}
	case "huge":
		out.Write(append([]byte("m"), 0xff, 0xff, 0xff, 0xff, 0x0f))
		return 0
	case "refuse":
		a.End(&review.Error{Code: "conflict", Cause: "it changed", Cure: "look again"})
		return 0
	}
	for _, m := range ms {
		if a.Emit(m) != nil {
			return 1
		}
	}
	a.End(nil)
	return 0
}

// bench is a daemon that serves reviews of one guest, "g", which does not run.
type reviewBench struct {
	*Daemon
	e       *entry
	store   string
	project string
	reviews apiconnect.ReviewServiceClient
	guests  apiconnect.GuestServiceClient
	shares  apiconnect.ShareServiceClient
}

func newReviewBench(t *testing.T, s fakeStore, ephemeral bool, mode api.ShareMode) *reviewBench {
	t.Helper()
	d := newDaemon(t)
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	top, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	b := &reviewBench{Daemon: d, store: filepath.Join(top, "store"), project: filepath.Join(top, "src", "project")}
	d.opts.Review = []string{exe, "review", b.store}
	ctx, cancel := context.WithCancel(context.Background())
	d.ctx = ctx
	t.Cleanup(func() { cancel(); d.owned.Wait() })
	for _, dir := range []string{b.project, d.guests} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.save(b.store); err != nil {
		t.Fatal(err)
	}
	spec := &api.GuestSpec{Name: "g", Ephemeral: ephemeral, Shares: []*api.Share{{Path: b.project, GuestPath: b.project, Mode: mode}}}
	if err := guest.Create(d.guests, "g", spec, guest.Making{}); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(d.guests, "g", "scratch.img"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	b.reload(t)
	mux := http.NewServeMux()
	mux.Handle(apiconnect.NewReviewServiceHandler(&reviewService{d}))
	mux.Handle(apiconnect.NewGuestServiceHandler(&guestService{d}))
	mux.Handle(apiconnect.NewShareServiceHandler(&shareService{d}))
	srv := httptest.NewServer(mux)
	t.Cleanup(srv.Close)
	b.reviews = apiconnect.NewReviewServiceClient(srv.Client(), srv.URL)
	b.guests = apiconnect.NewGuestServiceClient(srv.Client(), srv.URL)
	b.shares = apiconnect.NewShareServiceClient(srv.Client(), srv.URL)
	return b
}

// reload takes the guest from the disk, as a daemon does that starts.
func (b *reviewBench) reload(t *testing.T) {
	t.Helper()
	if err := b.adopt(b.ctx, "g", filepath.Join(b.Daemon.guests, "g")); err != nil {
		t.Fatal(err)
	}
	b.e = b.table["g"]
}

// patience bounds each wait for what has to come. A test that passes does not take
// longer for it, and a busy machine may be slower than any guess.
const patience = 5 * time.Minute

func (b *reviewBench) is(t *testing.T, what string, cond func(*api.Guest) bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if info, err := b.e.wait(ctx, func(g *api.Guest, _ *keeper) bool { return cond(g) }); err != nil {
		t.Fatalf("it is never %s: %v", what, info)
	}
}

func (b *reviewBench) goes(t *testing.T) {
	t.Helper()
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		if _, err := b.find("g"); err != nil {
			if _, err := os.Stat(filepath.Join(b.Daemon.guests, "g")); errors.Is(err, os.ErrNotExist) {
				return
			}
		}
	}
	t.Fatal("it is not removed")
}

func (b *reviewBench) apply(ctx context.Context, r *api.ApplyRequest) (paths []string, err error) {
	r.Guest = "g"
	st, err := b.reviews.Apply(ctx, connect.NewRequest(r))
	if err != nil {
		return nil, err
	}
	defer st.Close()
	for st.Receive() {
		paths = append(paths, st.Msg().Path)
	}
	return paths, st.Err()
}

func codeOf(err error) string {
	var ce *connect.Error
	if errors.As(err, &ce) {
		for _, d := range ce.Details() {
			if m, err := d.Value(); err == nil {
				return m.(*api.ErrorDetail).Code
			}
		}
	}
	return fmt.Sprint(err)
}

// cureOf is what an error of the API says would mend it.
func cureOf(err error) string {
	var ce *connect.Error
	if errors.As(err, &ce) {
		for _, d := range ce.Details() {
			if m, err := d.Value(); err == nil {
				return m.(*api.ErrorDetail).Cure
			}
		}
	}
	return ""
}

const inReviewMode, inRW = api.ShareMode_SHARE_MODE_REVIEW, api.ShareMode_SHARE_MODE_RW

// An ephemeral guest that leaves changes is kept until they are applied, over a
// restart of the daemon too, and then for what undo needs.
func TestKeptForReview(t *testing.T) {
	b := newReviewBench(t, fakeStore{Changes: []string{"/a", "/b"}}, true, inReviewMode)
	kept := func(why api.GuestKept, pendings int) func(*api.Guest) bool {
		return func(g *api.Guest) bool {
			return g.Kept == why && !g.Spec.Ephemeral && int(pending(g.Review)) == pendings
		}
	}
	b.is(t, "kept for its review", kept(api.GuestKept_GUEST_KEPT_REVIEW, 2))
	b.reload(t)
	b.is(t, "kept after a restart", kept(api.GuestKept_GUEST_KEPT_REVIEW, 2))

	_, err := b.guests.Remove(context.Background(), connect.NewRequest(&api.RemoveGuestRequest{Name: "g"}))
	if codeOf(err) != "changes_waiting" || !strings.Contains(err.Error(), "2 changed files") {
		t.Errorf("removed with its changes: %v", err)
	}
	if _, err = b.shares.Remove(context.Background(), connect.NewRequest(&api.RemoveShareRequest{Guest: "g", Path: b.project})); codeOf(err) != "changes_waiting" {
		t.Errorf("its share was removed with its changes: %v", err)
	}
	if !strings.Contains(err.Error(), "applied or discarded") {
		t.Errorf("without its cure: %v", err)
	}
	if got, err := b.apply(context.Background(), &api.ApplyRequest{}); err != nil || len(got) != 2 {
		t.Fatal(got, err)
	}
	b.is(t, "kept for undo", kept(api.GuestKept_GUEST_KEPT_UNDO, 0))
	for _, err := os.Stat(filepath.Join(b.dir(b.e), "scratch.img")); err == nil; _, err = os.Stat(filepath.Join(b.dir(b.e), "scratch.img")) {
		time.Sleep(5 * time.Millisecond) // it has no use for a disk
	}
	b.reload(t)
	b.is(t, "kept for undo after a restart", kept(api.GuestKept_GUEST_KEPT_UNDO, 0))
	st, err := b.reviews.Undo(context.Background(), connect.NewRequest(&api.UndoRequest{Guest: "g"}))
	for err == nil && st.Receive() {
	}
	if err = errors.Join(err, st.Err()); err != nil {
		t.Fatal(err)
	}
	b.goes(t)
}

func TestDiscardedGoes(t *testing.T) {
	b := newReviewBench(t, fakeStore{Changes: []string{"/a"}}, true, inReviewMode)
	b.is(t, "kept", func(g *api.Guest) bool { return g.Kept == api.GuestKept_GUEST_KEPT_REVIEW })
	res, err := b.reviews.Discard(context.Background(), connect.NewRequest(&api.DiscardRequest{Guest: "g"}))
	if err != nil || res.Msg.Discarded != 1 {
		t.Fatal(res, err)
	}
	b.goes(t)
}

// One without changes goes when its caller has its result, and one that is not
// ephemeral stays whatever waits of it. What may be lost is not removed because
// it could not be looked at.
func TestLeave(t *testing.T) {
	b := newReviewBench(t, fakeStore{}, true, inReviewMode)
	b.leave(b.ctx, b.e, true)
	b.goes(t)

	b = newReviewBench(t, fakeStore{Changes: []string{"/a"}}, false, inReviewMode)
	b.leave(b.ctx, b.e, true)
	b.is(t, "shown with its changes", func(g *api.Guest) bool { return pending(g.Review) == 1 && g.Kept == 0 })

	b = newReviewBench(t, fakeStore{Does: "die"}, true, inReviewMode)
	b.leave(b.ctx, b.e, true)
	if _, err := b.find("g"); err != nil {
		t.Error("removed, though nobody knows what it holds")
	}
	b = newReviewBench(t, fakeStore{Undoable: 1}, true, inRW)
	b.leave(b.ctx, b.e, true)
	b.is(t, "kept for undo", func(g *api.Guest) bool { return g.Kept == api.GuestKept_GUEST_KEPT_UNDO })
}

// What a review process does wrong is an error of its own; what it says is wrong
// is handed on; it gets the shares as they are granted.
func TestReviewProcess(t *testing.T) {
	b := newReviewBench(t, fakeStore{Changes: []string{"/a"}}, false, inReviewMode)
	for does, want := range map[string]string{"die": "review_failed", "huge": "review_failed", "refuse": "conflict", "": "<nil>"} {
		s := fakeStore{Changes: []string{"/a"}, Does: does}
		if err := s.save(b.store); err != nil {
			t.Fatal(err)
		}
		if _, err := b.reviews.Summary(context.Background(), connect.NewRequest(&api.ReviewSummaryRequest{Guest: "g"})); codeOf(err) != want {
			t.Errorf("%q: %v", does, err)
		}
	}
	var s fakeStore
	if err := s.load(b.store + ".saw"); err != nil || len(s.Saw) != 1 {
		t.Fatal(s, err)
	}
	if ref := s.Saw[0]; ref.Path != b.project || ref.Ino == 0 || filepath.Dir(ref.Store) != filepath.Join(b.dir(b.e), guest.DirReview) || ref.Rules.Mode != sharerules.Review {
		t.Errorf("%+v", ref)
	}
	// A reader that goes away ends the process, and leaves the turn to others.
	s.Does = "hang"
	if err := s.save(b.store); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	st, err := b.reviews.Diff(ctx, connect.NewRequest(&api.DiffRequest{Guest: "g"}))
	if err != nil || !st.Receive() {
		t.Fatal(err, st.Err())
	}
	busy, bcancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer bcancel()
	if done, err := b.e.turn(busy, readers); err == nil {
		done()
		t.Error("changes may be applied while they are read")
	}
	cancel()
	st.Close()
	done, err := b.e.turn(context.Background(), readers)
	if err != nil {
		t.Fatal("the turn is not free again:", err)
	}
	done()
}

// What was done is in the audit log, counted, without names.
func TestReviewIsRecorded(t *testing.T) {
	b := newReviewBench(t, fakeStore{Changes: []string{"/secret-name"}}, false, inReviewMode)
	if err := os.MkdirAll(b.auditDir("g"), 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := b.apply(context.Background(), &api.ApplyRequest{DryRun: true}); err != nil {
		t.Fatal(err)
	}
	s := fakeStore{Changes: []string{"/secret-name"}}
	if err := s.save(b.store); err != nil {
		t.Fatal(err)
	}
	if _, err := b.apply(context.Background(), &api.ApplyRequest{}); err != nil {
		t.Fatal(err)
	}
	files, _ := filepath.Glob(filepath.Join(b.auditDir("g"), "*"))
	all := ""
	for _, f := range files {
		r, err := os.Open(f)
		if err != nil {
			t.Fatal(err)
		}
		text, _ := io.ReadAll(r)
		r.Close()
		all += string(text)
	}
	if strings.Count(all, "review.applied") != 1 || !strings.Contains(all, `"applied":1`) || strings.Contains(all, "secret-name") {
		t.Errorf("%s", all)
	}
}

// What is applied or discarded while the guest does not run is noted for its
// next start, by share and with names below it.
func TestDropsAreNoted(t *testing.T) {
	b := newReviewBench(t, fakeStore{}, false, inReviewMode)
	b.dropReview(context.Background(), b.e, []string{filepath.Join(b.project, "a", "b"), "/elsewhere/x", filepath.Join(b.project, "c")})
	b.dropReview(context.Background(), b.e, []string{b.project})
	f, err := os.OpenFile(filepath.Join(b.dir(b.e), fileDrops), os.O_APPEND|os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	in := bufio.NewReader(f)
	for _, want := range []string{"a/b c", ""} {
		m := new(api.DropReviewRequest)
		if err := protodelim.UnmarshalFrom(in, m); err != nil || m.Share != b.project || strings.Join(m.Names, " ") != want {
			t.Errorf("%v %v, want %q", m, err, want)
		}
	}
	if err := protodelim.UnmarshalFrom(in, new(api.DropReviewRequest)); err != io.EOF {
		t.Error(err)
	}
}

// Shares of a guest that does not run come and go with what it is made of.
func TestSharesOfAStoppedGuest(t *testing.T) {
	b := newReviewBench(t, fakeStore{}, false, inReviewMode)
	other := filepath.Join(filepath.Dir(b.project), "other")
	if err := os.Mkdir(other, 0o700); err != nil {
		t.Fatal(err)
	}
	add := func(s *api.Share) error {
		_, err := b.shares.Add(context.Background(), connect.NewRequest(&api.AddShareRequest{Guest: "g", Share: s}))
		return err
	}
	for range 2 { // twice is once
		if err := add(&api.Share{Path: other, GuestPath: "/o", Mode: api.ShareMode_SHARE_MODE_RO, Hide: []string{"x"}}); err != nil {
			t.Fatal(err)
		}
	}
	for why, s := range map[string]*api.Share{"another at that place": {Path: b.project, GuestPath: "/o"}, "home": {Path: "/etc"}, "a pattern": {Path: other, GuestPath: "/p", Hide: []string{`\`}}} {
		if err := add(s); err == nil {
			t.Errorf("%s was shared", why)
		}
	}
	b.reload(t)
	list, err := b.shares.List(context.Background(), connect.NewRequest(&api.ListSharesRequest{Guest: "g"}))
	if err != nil || len(list.Msg.Shares) != 2 || list.Msg.Shares[1].Share.Path != other {
		t.Fatal(list, err)
	}
	for path, want := range map[string]string{"x": "--hide", ".env": "built in", "y": ""} {
		x, err := b.shares.Explain(context.Background(), connect.NewRequest(&api.ExplainShareRequest{Guest: "g", Path: filepath.Join(other, path)}))
		if err != nil || x.Msg.Origin != want || x.Msg.Hidden != (want != "") {
			t.Errorf("%s: %v %v", path, x, err)
		}
	}
	if _, err := b.shares.Explain(context.Background(), connect.NewRequest(&api.ExplainShareRequest{Guest: "g", Path: "/elsewhere"})); codeOf(err) != "not_shared" {
		t.Error(err)
	}
	for _, path := range []string{"/o", b.project} {
		if _, err := b.shares.Remove(context.Background(), connect.NewRequest(&api.RemoveShareRequest{Guest: "g", Path: path})); err != nil {
			t.Error(err)
		}
	}
	b.reload(t)
	if info, _, _ := b.e.get(); len(info.Spec.Shares) != 0 {
		t.Errorf("%v", info.Spec.Shares)
	}
}
