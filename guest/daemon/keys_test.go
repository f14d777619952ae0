package daemon

import (
	"log/slog"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/api/apiconnect"
	"github.com/carrel-vm/carrel/guest/daemon/store"
)

// An index that was made again from the journals knows keys without their requests:
// the answer of one guest is still none for another.
func TestKeyOfAnotherGuest(t *testing.T) {
	index, err := store.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer index.Close()
	b, err := proto.Marshal(&api.Task{Id: "01", Guest: "a"})
	if err != nil {
		t.Fatal(err)
	}
	k := store.Answered{Key: "k", Method: apiconnect.TaskServiceStartProcedure, At: time.Now(), Answer: b}
	if _, err := index.Update(t.Context(), store.Known{Guest: "a", Keys: []store.Answered{k}}); err != nil {
		t.Fatal(err)
	}
	d := &Daemon{index: index, log: slog.New(slog.DiscardHandler), table: map[string]*entry{}}
	for guest, is := range map[string]bool{"a": true, "b": false} {
		task, err := d.earlierTask(t.Context(), &api.StartTaskRequest{Guest: guest, IdempotencyKey: "k"}, [32]byte{1})
		if is != (task.GetId() == "01") || is != (err == nil) {
			t.Errorf("guest %s: %v, %v", guest, task, err)
		}
	}
}
