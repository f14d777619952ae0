package guest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/gofrs/flock"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/policy"
	"github.com/carrel-vm/carrel/hypervisor"
)

// A guest's folder, <state>/guests/<name>, mode 0700:
//
//	guest.json     what was asked for; replaced whole when a share comes or goes
//	journal        what happened; only the holder of lock writes it
//	lock           held by the keeper as long as it lives
//	keeper.json    which process that is
//	tasks/<id>/    spools
//	scratch.img    the disk, if there is one (Windows: scratch.vhdx)
//	console.log    what the kernel printed
//	egress.json    what was changed about its egress; only the daemon writes it
//	ports.json     which ports lead into it while it runs; likewise
//	review/        what waits to be reviewed, and what undo needs, by layer
//	kept.json      why an ephemeral guest is still there; only the daemon writes it
//	drops          what it is to forget when it runs again; likewise
//	audit/         the audit log, which daemon, keeper and egress process write
const (
	fileSpec    = "guest.json"
	fileJournal = "journal"
	fileLock    = "lock"
	fileKeeper  = "keeper.json"
	fileScratch = "scratch" + hypervisor.DiskExt
	dirTasks    = "tasks"
	dirAudit    = "audit"
	// DirReview holds the stores of a guest's shares, each in a folder that is
	// named for its layer.
	DirReview = "review"
)

// Part is what a file of a guest's folder is for.
type Part int

// The parts that take room.
const (
	PartOther Part = iota
	PartDisk
	PartReview
	PartOutput
)

// PartOf says what an entry of a guest's folder is for.
func PartOf(name string) Part {
	switch name {
	case fileScratch, fileScratch + ".files":
		return PartDisk
	case DirReview:
		return PartReview
	case dirTasks:
		return PartOutput
	}
	return PartOther
}

// maxRecord bounds a small state file, in bytes.
const maxRecord = 1 << 20

// saved is guest.json.
type saved struct {
	Version int             `json:"version"`
	Created time.Time       `json:"created"`
	Spec    json.RawMessage `json:"spec"`
	Making
}

// Making is the request that made a guest, as its idempotency key knows it.
type Making struct {
	Key     string `json:"key,omitempty"`
	Request []byte `json:"request,omitempty"` // its SHA-256
	// Warm says that there was no request yet.
	Warm bool `json:"warm,omitempty"`
}

// SocketPath is where a guest's keeper listens: short, whatever the name, since
// a unix socket's path has at most 107 bytes.
func SocketPath(run, name string) string {
	h := fnv.New64a()
	h.Write([]byte(name))
	return filepath.Join(run, fmt.Sprintf("k-%08x", uint32(h.Sum64()>>32)^uint32(h.Sum64())))
}

// Create makes a guest's folder; it is there whole or not at all.
func Create(guests, name string, spec *api.GuestSpec, by Making) error {
	b, err := saveSpec(time.Now().UTC(), spec, by)
	if err != nil {
		return err
	}
	tmp, err := os.MkdirTemp(guests, ".new-"+name+"-")
	if err != nil {
		return err
	}
	if err = writeSynced(filepath.Join(tmp, fileSpec), b); err == nil {
		err = syncDir(tmp)
	}
	Crash("create: before the rename")
	if err == nil {
		err = os.Rename(tmp, filepath.Join(guests, name))
	}
	Crash("create: after the rename")
	if err != nil {
		os.RemoveAll(tmp)
		return err
	}
	return syncDir(guests)
}

func saveSpec(created time.Time, spec *api.GuestSpec, by Making) ([]byte, error) {
	raw, err := protojson.Marshal(spec)
	if err != nil {
		return nil, err
	}
	return json.MarshalIndent(&saved{Version: 1, Created: created, Spec: raw, Making: by}, "", " ")
}

// Respec replaces what a guest was asked for, from its next start on. Only the
// daemon calls it.
func Respec(dir string, spec *api.GuestSpec) error {
	return respec(dir, spec, nil)
}

// Claimed makes a warm guest that of a request, for good. Only the daemon calls
// it, when the guest has all that was granted.
func Claimed(dir string, spec *api.GuestSpec, by Making) error {
	return respec(dir, spec, &by)
}

// isWarm says whether a guest's folder says that it is nobody's.
func isWarm(dir string) (bool, error) {
	b, err := readSmall(filepath.Join(dir, fileSpec))
	if err != nil {
		return false, err
	}
	var s saved
	if err := json.Unmarshal(b, &s); err != nil {
		return false, fmt.Errorf("%w: %s: %v", ErrDamaged, dir, err)
	}
	return s.Making.Warm, nil
}

func respec(dir string, spec *api.GuestSpec, by *Making) error {
	path := filepath.Join(dir, fileSpec)
	b, err := readSmall(path)
	if err != nil {
		return err
	}
	var s saved
	if err := json.Unmarshal(b, &s); err != nil {
		return fmt.Errorf("%w: %s: %v", ErrDamaged, dir, err)
	}
	if by != nil {
		s.Making = *by
	}
	if b, err = saveSpec(s.Created, spec, s.Making); err != nil {
		return err
	}
	if len(b) > maxRecord {
		return fmt.Errorf("what the guest is made of takes %d bytes; %d are possible", len(b), maxRecord)
	}
	return policy.WriteFile(path, b)
}

// RemoveDisk removes the disk of a guest that is not started again.
func RemoveDisk(dir string) error {
	return errors.Join(removeThere(filepath.Join(dir, fileScratch)), os.RemoveAll(filepath.Join(dir, fileScratch+".files")))
}

func removeThere(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

func writeSynced(path string, b []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	return err
}

// ErrLeftOver means that a guest is gone, but not all of its files from the disk.
var ErrLeftOver = errors.New("files of a removed guest are left")

// Discard removes a guest's folder: first out of sight, then from the disk, so
// that a crash leaves nothing half there. A process of the guest's that is just
// ending may write a file meanwhile: what is left then is ErrLeftOver, and the
// next daemon to start removes it.
func Discard(guests, name string) error {
	tmp, err := os.MkdirTemp(guests, ".rm-"+name+"-")
	if err != nil {
		return err
	}
	Crash("discard: before the rename")
	if err := os.Rename(filepath.Join(guests, name), filepath.Join(tmp, "d")); err != nil && !errors.Is(err, os.ErrNotExist) {
		os.Remove(tmp)
		return err
	}
	Crash("discard: after the rename")
	if err := os.RemoveAll(tmp); err != nil {
		return fmt.Errorf("%w: %w", ErrLeftOver, err)
	}
	return nil
}

// readSmall reads a file of ours that should be small.
func readSmall(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxRecord+1))
	if err == nil && len(b) > maxRecord {
		err = fmt.Errorf("%s is larger than %d bytes", path, maxRecord)
	}
	return b, err
}

// Load reads a guest's folder as it stands, without its keeper.
func Load(dir string) (*api.Guest, *History, error) {
	damaged := func(err error) error { return fmt.Errorf("%w: %s: %v", ErrDamaged, dir, err) }
	b, err := readSmall(filepath.Join(dir, fileSpec))
	if err != nil {
		return nil, nil, damaged(err)
	}
	var s saved
	if err := json.Unmarshal(b, &s); err != nil {
		return nil, nil, damaged(err)
	}
	if s.Version != 1 {
		return nil, nil, fmt.Errorf("%w: %s was written by another version of Carrel (format %d, this one knows 1)", ErrDamaged, dir, s.Version)
	}
	spec := new(api.GuestSpec)
	if err := protojson.Unmarshal(s.Spec, spec); err != nil {
		return nil, nil, damaged(err)
	}
	if spec.Name != filepath.Base(dir) {
		return nil, nil, damaged(fmt.Errorf("it says that its name is %q", spec.Name))
	}
	h, _, err := ReadJournal(filepath.Join(dir, fileJournal))
	if err != nil {
		return nil, nil, err
	}
	g := &api.Guest{
		Name: spec.Name, Spec: spec, State: api.GuestState_GUEST_STATE_STOPPED,
		Created: timestamppb.New(s.Created), StateDir: dir, Tasks: h.Tasks,
	}
	if !h.started.IsZero() {
		g.Started = timestamppb.New(h.started)
	}
	if h.last != nil {
		g.Cause = h.last.Cause
		g.StoppedIdle = h.last.State == "gone" && h.last.Idle
	}
	h.By = s.Making
	return g, h, nil
}

// Delivered says whether an ephemeral guest's caller has its result.
func (h *History) Delivered() bool { return h.last != nil && h.last.Delivered }

// Starting says whether the guest's last start has not come to ready, nor to an end.
func (h *History) Starting() bool { return h.last != nil && h.last.State == "starting" }

// Lock takes a guest's folder for this process; ok is false if a keeper has it.
func Lock(dir string) (unlock func(), ok bool, err error) {
	l := flock.New(filepath.Join(dir, fileLock), flock.SetPermissions(0o600))
	ok, err = l.TryLock()
	if err != nil || !ok {
		l.Close()
		return nil, false, err
	}
	return func() { l.Close() }, true, nil
}

// Settle gives every task that was accepted and has no ending its ending:
// interrupted, with the cause. The caller holds the lock.
func Settle(dir, cause string) error {
	j, h, err := openJournal(filepath.Join(dir, fileJournal))
	if err != nil {
		return err
	}
	defer j.close()
	if h.last != nil && h.last.State == "gone" && !open(h) {
		return nil
	}
	for _, t := range h.Tasks {
		if !ended(t) {
			interrupt(t, cause)
			Crash("settle: before a task")
			if err := j.add(taskRecord(t, "")); err != nil {
				return err
			}
		}
	}
	Crash("settle: after the tasks")
	waking := h.last != nil && h.last.State == "starting" && h.last.Idle
	return j.add(&record{Guest: &guestRecord{State: "gone", Cause: cause, Idle: waking}})
}

// StayStopped has a guest that was stopped for idleness be one that was asked to
// stop.
func StayStopped(dir string) error {
	unlock, ok, err := Lock(dir)
	if err != nil {
		return err
	}
	if !ok {
		return errors.New("the guest has a keeper")
	}
	defer unlock()
	j, h, err := openJournal(filepath.Join(dir, fileJournal))
	if err != nil {
		return err
	}
	defer j.close()
	if h.last == nil || h.last.State != "gone" || !h.last.Idle {
		return nil
	}
	last := *h.last
	last.Idle = false
	return j.add(&record{Guest: &last})
}

func open(h *History) bool {
	for _, t := range h.Tasks {
		if !ended(t) {
			return true
		}
	}
	return false
}

func interrupt(t *api.Task, cause string) {
	t.State = api.TaskState_TASK_STATE_INTERRUPTED
	t.Ended = timestamppb.Now()
	t.Ending = &api.Ending{Status: StatusOurs, Cause: cause}
}

// killBound is how long a process that was killed may take to end.
const killBound = 5 * time.Second

// LockWait is Lock, but waits for a keeper to end, as long as ctx lets it.
func LockWait(ctx context.Context, dir string) (unlock func(), err error) {
	l := flock.New(filepath.Join(dir, fileLock), flock.SetPermissions(0o600))
	got := make(chan error, 1)
	go func() { got <- l.Lock() }() // ends with the keeper, at the latest
	select {
	case err := <-got:
		if err != nil {
			l.Close()
			return nil, err
		}
		return func() { l.Close() }, nil
	case <-ctx.Done():
		go func() { <-got; l.Close() }()
		return nil, ctx.Err()
	}
}
