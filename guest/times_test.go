package guest

import (
	"math"
	"net"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/wire"
)

// guestTimes are the fields in which a guest says a time, with what is made of
// each. The host orders nothing by them.
var guestTimes = map[protoreflect.FullName]string{
	"carrel.wire.v1.Hello.up_nanos":      "a part of a trace, cut to the host's own moments: TestTraceClaims",
	"carrel.wire.v1.Hello.init_nanos":    "the same",
	"carrel.wire.v1.Ready.mount_nanos":   "the same",
	"carrel.wire.v1.Ready.steer_nanos":   "the same",
	"carrel.wire.v1.File.mtime_nanos":    "shown: TestGuestTimes",
	"carrel.wire.v1.Changed.mtime_nanos": "shown",
	// What the host says.
	"carrel.wire.v1.Setup.unix_nanos":     "",
	"carrel.wire.v1.SetTime.unix_nanos":   "",
	"carrel.wire.v1.PowerOff.grace_nanos": "",
}

// P15: no message has a time that is not on the list above, and the list names
// none that there is not.
func TestGuestTimesAreKnown(t *testing.T) {
	found := map[protoreflect.FullName]bool{}
	var walk func(ms protoreflect.MessageDescriptors)
	walk = func(ms protoreflect.MessageDescriptors) {
		for i := range ms.Len() {
			for j := range ms.Get(i).Fields().Len() {
				f := ms.Get(i).Fields().Get(j)
				name := string(f.Name())
				if strings.HasSuffix(name, "nanos") || strings.Contains(name, "time") && f.Kind() != protoreflect.MessageKind || f.Message() != nil && f.Message().FullName() == "google.protobuf.Timestamp" {
					found[f.FullName()] = true
				}
			}
			walk(ms.Get(i).Messages())
		}
	}
	walk((&wire.Hello{}).ProtoReflect().Descriptor().ParentFile().Messages())
	for f := range found {
		if _, ok := guestTimes[f]; !ok {
			t.Errorf("%s is a time that nobody has judged", f)
		}
	}
	for f := range guestTimes {
		if !found[f] {
			t.Errorf("there is no %s", f)
		}
	}
}

// P15: whatever a guest says of time, its files are shown, its start has the
// host's times in the host's order, and it lives on. The control is a guest
// whose clock goes right.
func TestGuestTimes(t *testing.T) {
	for name, nanos := range map[string]int64{
		"control": time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC).UnixNano(),
		"1970":    0, "before 1970": -1, "1677": math.MinInt64, "2262": math.MaxInt64,
	} {
		t.Run(name, func(t *testing.T) {
			before := time.Now()
			g := startFake(t, &hostile{boot: func(c net.Conn) {
				r := wire.NewReader(c)
				say(c, &wire.FromGuest{Kind: &wire.FromGuest_Hello{Hello: &wire.Hello{Version: wire.Version, Agent: "test", UpNanos: nanos, InitNanos: nanos}}})
				if r.Read(new(wire.FromHost)) != nil {
					return
				}
				say(c, &wire.FromGuest{Kind: &wire.FromGuest_Ready{Ready: &wire.Ready{MountNanos: nanos, SteerNanos: nanos}}})
				for r.Read(new(wire.FromHost)) == nil {
				}
			}, call: func(c net.Conn, _ int) {
				wire.NewReader(c).Read(new(wire.Call))
				for _, m := range []*wire.Copy{
					{Kind: &wire.Copy_File{File: &wire.File{Name: "x", Type: wire.FileType_FILE_TYPE_DIRECTORY, MtimeNanos: nanos}}},
					{Kind: &wire.Copy_File{File: &wire.File{Name: "a", Type: wire.FileType_FILE_TYPE_REGULAR, Whole: 3, MtimeNanos: nanos}}},
					{Kind: &wire.Copy_Done{Done: &wire.Done{}}},
				} {
					say(c, m)
				}
				c.Read(make([]byte, 1))
			}})
			if g.Hello.UpNanos < 0 || g.Hello.InitNanos < 0 {
				t.Errorf("what the host keeps: %v", g.Hello)
			}
			if g.Ran.Before(before) || g.Greeted.Before(g.Ran) || g.Ready.Before(g.Greeted) || g.Ready.After(time.Now()) {
				t.Errorf("the host's own times: begun %v, ran %v, greeted %v, ready %v", before, g.Ran, g.Greeted, g.Ready)
			}
			f := keeperFiles{&Keeper{g: g, info: &api.Guest{Name: "g"}}}
			r, err := f.List(t.Context(), connect.NewRequest(&api.ListFilesRequest{Path: "/x"}))
			if err != nil || len(r.Msg.Entries) != 1 {
				t.Fatalf("%v %v", r, err)
			}
			when := r.Msg.Entries[0].Modified
			if err := when.CheckValid(); err != nil || when.AsTime().UnixNano() != nanos {
				t.Errorf("%d is shown as %v: %v", nanos, when, err)
			}
			if _, err := protojson.Marshal(r.Msg); err != nil { // what a client in plain JSON gets
				t.Error(err)
			}
			if g.Cause() != "" {
				t.Errorf("the guest was ended: %s", g.Cause())
			}
		})
	}
}
