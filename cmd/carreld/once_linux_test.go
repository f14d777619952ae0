package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

	"github.com/carrel-vm/carrel/guest"
	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/api/apiconnect"
)

// maker is one method that makes something.
type maker struct {
	// points are those at which a daemon dies that no other maker comes to.
	points []string
	// ask asks for the same with a key; with other, for something else.
	ask func(ctx context.Context, w *world, key string, other bool) (proto.Message, error)
	// count is how many of it there are.
	count func(t *testing.T, w *world) int
}

func (w *world) of(h func(connect.HTTPClient)) {
	c := guest.NewHTTPClient(filepath.Join(w.home, "run", "d.sock"))
	defer c.CloseIdleConnections()
	h(c)
}

func msg[T any](r *connect.Response[T], err error) (*T, error) {
	if err != nil {
		return nil, err
	}
	return r.Msg, nil
}

var makers = map[string]maker{
	"a volume": {points: []string{"volume: before the rename"}, ask: func(ctx context.Context, w *world, key string, other bool) (m proto.Message, err error) {
		r := &api.CreateVolumeRequest{Name: "cache", SizeMib: 64, IdempotencyKey: key}
		if other {
			r.SizeMib = 65
		}
		w.of(func(h connect.HTTPClient) {
			m, err = msg(apiconnect.NewDiskServiceClient(h, "http://carrel").CreateVolume(ctx, connect.NewRequest(r)))
		})
		return m, err
	}, count: func(t *testing.T, w *world) int {
		vs, err := w.client().Volumes(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return len(vs)
	}},
	"a share": {ask: func(ctx context.Context, w *world, key string, other bool) (m proto.Message, err error) {
		r := &api.AddShareRequest{Guest: "off", Share: &api.Share{Path: w.work, GuestPath: "/mnt/work", Mode: api.ShareMode_SHARE_MODE_RO}, IdempotencyKey: key}
		if other {
			r.Share.GuestPath = "/mnt/other"
		}
		w.of(func(h connect.HTTPClient) {
			m, err = msg(apiconnect.NewShareServiceClient(h, "http://carrel").Add(ctx, connect.NewRequest(r)))
		})
		return m, err
	}, count: func(t *testing.T, w *world) int {
		list, err := w.client().Shares(t.Context(), "off")
		if err != nil {
			t.Fatal(err)
		}
		return len(list)
	}},
	"a port": {points: []string{"once: a port is open, before it is written down"}, ask: func(ctx context.Context, w *world, key string, other bool) (m proto.Message, err error) {
		r := &api.PublishRequest{Guest: "box", Port: &api.Port{GuestPort: 8080}, IdempotencyKey: key} // the host chooses
		if other {
			r.Port.GuestPort = 8081
		}
		w.of(func(h connect.HTTPClient) {
			m, err = msg(apiconnect.NewEgressServiceClient(h, "http://carrel").Publish(ctx, connect.NewRequest(r)))
		})
		return m, err
	}, count: func(t *testing.T, w *world) int {
		g, err := w.client().Guest(t.Context(), "box")
		if err != nil {
			t.Fatal(err)
		}
		return len(g.Ports)
	}},
	"a pair of keys": {ask: func(ctx context.Context, w *world, key string, other bool) (m proto.Message, err error) {
		r := &api.CreateKeyRequest{Path: filepath.Join(w.work, "sign"), IdempotencyKey: key}
		if other {
			r.Path += "2"
		}
		w.of(func(h connect.HTTPClient) {
			m, err = msg(apiconnect.NewImageServiceClient(h, "http://carrel").CreateKey(ctx, connect.NewRequest(r)))
		})
		return m, err
	}, count: func(t *testing.T, w *world) int {
		all, _ := filepath.Glob(filepath.Join(w.work, "sign*"))
		return len(all) / 2
	}},
}

// Who asks with a key until there is an answer, through the death of the daemon at
// each point, has one of what was to be made, and the same answer ever after.
func TestKeyedOnceCrash(t *testing.T) {
	common := []string{}
	for _, p := range crashPoints(t) {
		if strings.HasPrefix(p, "once: ") && !strings.Contains(p, "a port") {
			common = append(common, p)
		}
	}
	if len(common) != 3 {
		t.Fatalf("the points that all come to: %q", common)
	}
	for name, m := range makers {
		for _, point := range append(m.points, common...) {
			t.Run(name+" "+point, func(t *testing.T) {
				t.Parallel()
				w := newRing2(t)
				mark := filepath.Join(w.work, "mark")
				w.start() // without the point: what comes before has volumes of its own, or not
				c := w.client()
				if name == "a port" {
					w.guest(c, "box")
				}
				if name == "a share" {
					w.guest(c, "off")
					if _, err := c.StopGuest(t.Context(), "off", time.Second); err != nil {
						t.Fatal(err)
					}
				}
				w.kill()
				w.env = []string{"CARREL_CRASH=" + point, "CARREL_CRASH_MARK=" + mark}
				w.start()
				insist := func() (out proto.Message) {
					t.Helper()
					var err error
					for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
						if out, err = m.ask(t.Context(), w, "k", false); err == nil {
							return out
						}
						if connect.CodeOf(err) == connect.CodeUnavailable && word(err) == "" {
							w.d.Wait()
							w.start()
						}
					}
					t.Fatal(err)
					return nil
				}
				first := insist()
				if _, err := os.Stat(mark); err != nil {
					t.Fatal("nothing came to this point")
				}
				same := func(when string) {
					t.Helper()
					if again := insist(); fmt.Sprint(again) != fmt.Sprint(first) && !(name == "a volume" && strings.Contains(when, "index")) { // which is looked at again
						t.Errorf("%s: %v, first %v", when, again, first)
					}
					if n := m.count(t, w); n != 1 {
						t.Errorf("%s: there are %d", when, n)
					}
				}
				same("at once")
				w.kill()
				w.start()
				same("by the next daemon")
				if _, err := m.ask(t.Context(), w, "k", true); word(err) != "key_reused" {
					t.Errorf("another request with the key: %v", err)
				}
				if _, err := m.ask(t.Context(), w, strings.Repeat("k", 129), false); word(err) != "bad_key" {
					t.Errorf("a long key: %v", err)
				}
				if name != "a pair of keys" { // whose files have no key
					w.kill()
					for _, f := range []string{"index.db", "index.db-wal"} {
						os.Remove(filepath.Join(w.home, "state", f))
					}
					w.start()
					same("without the index")
				}
				// The control: another key makes another, or finds the name taken.
				if _, err := m.ask(t.Context(), w, "l", true); err != nil && word(err) != "name_taken" {
					t.Errorf("another key: %v", err)
				} else if n := m.count(t, w); err == nil && n != 2 {
					t.Errorf("another key made none: there are %d", n)
				}
			})
		}
	}
}
