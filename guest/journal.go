package guest

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/carrel-vm/carrel/guest/api"
)

// A journal is a file of lines, each a CRC-32 (IEEE, eight hex digits), a space
// and one JSON record. A line is on disk before what it says is acknowledged.
// A last line without its newline was never acknowledged and is dropped; any
// other damage is ErrDamaged.

// ErrDamaged means that a guest's state on disk cannot be trusted.
var ErrDamaged = errors.New("the guest's state on disk is damaged")

// errBroken means that nothing more is written to a journal until its keeper
// starts anew.
var errBroken = errors.New("the guest's journal is closed")

// Bounds of a journal.
const (
	maxLine    = 2 << 20 // a task's spec is at most one API message
	maxJournal = 64 << 20
	keepEnded  = 4096     // ended tasks that are remembered
	keepBytes  = 8 << 20  // and what they take in the journal
	largeFile  = 24 << 20 // beyond it a journal is rewritten
)

// record is one line. Exactly one of Task and Guest is set.
type record struct {
	Time time.Time       `json:"time"`
	Task json.RawMessage `json:"task,omitempty"` // api.Task as protojson, whole
	Key  string          `json:"key,omitempty"`  // its idempotency key
	// Request is the Digest of what the key came with.
	Request []byte       `json:"request,omitempty"`
	Guest   *guestRecord `json:"guest,omitempty"`
}

type guestRecord struct {
	// State is "starting", "ready" or "gone".
	State string `json:"state"`
	Cause string `json:"cause,omitempty"`
	// Delivered: an ephemeral guest's caller has its result.
	Delivered bool `json:"delivered,omitempty"`
	// Idle: it was stopped because nobody wanted anything from it, and starts again
	// when somebody does. Of a start: somebody does, and if nothing comes of it the
	// guest is as it was.
	Idle bool `json:"idle,omitempty"`
}

// History is what a journal says.
type History struct {
	// Tasks in the order in which they were accepted.
	Tasks []*api.Task
	// Keys are what the idempotency keys of tasks have made, by key.
	Keys map[string]Keyed
	// By is what made the guest; it stands beside the journal.
	By Making
	// Last is the guest's last record, or nil.
	last     *guestRecord
	lastTime time.Time
	started  time.Time
}

// Keyed is what an idempotency key has made.
type Keyed struct {
	Task string // its id
	// Request is the Digest of what the key came with. It is empty where a version
	// wrote the journal that did not keep it: then any request will do.
	Request []byte
}

// Is says whether a request, by its Digest, is what the key came with.
func (k Keyed) Is(request []byte) bool {
	return len(k.Request) == 0 || bytes.Equal(k.Request, request)
}

// Reused is the answer to a key that came with another request than the first time.
func Reused() error {
	return api.NewError(connect.CodeInvalidArgument, "key_reused", "the idempotency key was used for another request", "take a new key for each request")
}

// Digest is what a key must come with again: the SHA-256 of the request without
// the key.
func Digest(m proto.Message) (sum [32]byte, err error) {
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	return sha256.Sum256(b), err
}

// digestTask is Digest of a request that may have its key still.
func digestTask(r *api.StartTaskRequest) ([]byte, error) {
	bare := proto.Clone(r).(*api.StartTaskRequest)
	bare.IdempotencyKey = ""
	sum, err := Digest(bare)
	return sum[:], err
}

func (h *History) task(id string) *api.Task {
	for _, t := range h.Tasks {
		if t.Id == id {
			return t
		}
	}
	return nil
}

func (h *History) add(r *record) error {
	switch {
	case r.Task != nil && r.Guest == nil:
		t := new(api.Task)
		if err := protojson.Unmarshal(r.Task, t); err != nil {
			return err
		}
		if old := h.task(t.Id); old != nil {
			if ended(old) {
				return fmt.Errorf("task %q has two endings", t.Id)
			}
			if t.Spec == nil { // said once, when the task was accepted
				t.Spec = old.Spec
			}
			proto.Reset(old)
			proto.Merge(old, t)
		} else {
			h.Tasks = append(h.Tasks, t)
		}
		if r.Key != "" {
			h.Keys[r.Key] = Keyed{Task: t.Id, Request: r.Request}
		}
	case r.Guest != nil && r.Task == nil:
		h.last, h.lastTime = r.Guest, r.Time
		if r.Guest.State == "ready" {
			h.started = r.Time
		}
	default:
		return errors.New("a record of no known kind")
	}
	return nil
}

func ended(t *api.Task) bool {
	return t.State == api.TaskState_TASK_STATE_EXITED || t.State == api.TaskState_TASK_STATE_INTERRUPTED
}

// ReadJournal reads a journal; a missing one is an empty history. good is the
// length of its undamaged part.
func ReadJournal(path string) (h *History, good int64, err error) {
	h = &History{Keys: map[string]Keyed{}}
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return h, 0, nil
	}
	if err != nil {
		return nil, 0, err
	}
	defer f.Close()
	r := bufio.NewReaderSize(io.LimitReader(f, maxJournal+1), 64<<10)
	for n := 1; ; n++ {
		line, err := readLine(r)
		if err == io.EOF {
			if good+int64(len(line)) > maxJournal {
				return nil, 0, fmt.Errorf("%w: %s is larger than %d bytes", ErrDamaged, path, maxJournal)
			}
			return h, good, nil // a torn last line is dropped
		}
		if err == nil {
			var rec *record
			if rec, err = parseLine(line); err == nil {
				err = h.add(rec)
			}
		}
		if err != nil {
			return nil, 0, fmt.Errorf("%w: %s line %d: %v", ErrDamaged, path, n, err)
		}
		good += int64(len(line)) + 1
		if good > maxJournal {
			return nil, 0, fmt.Errorf("%w: %s is larger than %d bytes", ErrDamaged, path, maxJournal)
		}
	}
}

func readLine(r *bufio.Reader) ([]byte, error) {
	var line []byte
	for {
		part, err := r.ReadSlice('\n')
		line = append(line, part...)
		switch {
		case err == nil:
			return line[:len(line)-1], nil
		case len(line) > maxLine:
			return nil, fmt.Errorf("longer than %d bytes", maxLine)
		case err != bufio.ErrBufferFull:
			return line, err
		}
	}
}

func parseLine(line []byte) (*record, error) {
	if len(line) < 10 || line[8] != ' ' {
		return nil, errors.New("no checksum")
	}
	if want := fmt.Sprintf("%08x", crc32.ChecksumIEEE(line[9:])); want != string(line[:8]) {
		return nil, errors.New("its checksum does not match")
	}
	dec := json.NewDecoder(bytes.NewReader(line[9:]))
	// A field of a later version may narrow what the rest says, as request does with
	// key: a reader that skipped it would answer a key for what it was not given with.
	dec.DisallowUnknownFields()
	r := new(record)
	if err := dec.Decode(r); err != nil {
		return nil, err
	}
	return r, nil
}

// journal appends records to a file that only its opener writes.
type journal struct {
	mu   sync.Mutex
	f    *os.File
	size int64
	// synced is how much of it a sync has confirmed: what was noted since may not be
	// on the disk, though it is read back until the machine ends.
	synced int64
	// broken is why nothing more can be written.
	broken error
}

// openJournal reads the journal and opens it for appending; its torn end, if
// there is one, is cut off first. A long history is compacted.
func openJournal(path string) (*journal, *History, error) {
	h, good, err := ReadJournal(path)
	if err != nil {
		return nil, nil, err
	}
	if good > largeFile || len(h.Tasks) > 2*keepEnded {
		if good, err = compact(path, h); err != nil {
			return nil, nil, err
		}
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE, 0o600)
	if err != nil {
		return nil, nil, err
	}
	if err = f.Truncate(good); err == nil {
		err = f.Sync() // a keeper that was killed may have noted what is not on the disk
	}
	if err == nil {
		err = syncDir(filepath.Dir(path))
	}
	if err != nil {
		f.Close()
		return nil, nil, err
	}
	return &journal{f: f, size: good, synced: good}, h, nil
}

// compact rewrites the journal with the tasks of h, without the oldest of those
// that have ended, and returns its new length.
func compact(path string, h *History) (int64, error) {
	tmp := path + ".new"
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return 0, err
	}
	j := &journal{f: f}
	keys := map[string]string{}
	for k, made := range h.Keys {
		keys[made.Task] = k
	}
	var records []*record // the newest first
	total := 0
	for i := len(h.Tasks) - 1; i >= 0; i-- {
		t := h.Tasks[i]
		r := taskRecord(t, keys[t.Id])
		r.Request = h.Keys[r.Key].Request
		if total += len(r.Task); ended(t) && (len(h.Tasks)-i > keepEnded || total > keepBytes) {
			delete(h.Keys, keys[t.Id])
			h.Tasks = slices.Delete(h.Tasks, i, i+1)
			continue
		}
		records = append(records, r)
	}
	for _, r := range slices.Backward(records) {
		if err = j.write(r); err != nil {
			break
		}
	}
	if err == nil && h.last != nil {
		err = j.write(&record{Time: h.lastTime, Guest: h.last})
	}
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(tmp, path)
	}
	return j.size, err
}

func taskRecord(t *api.Task, key string) *record {
	b, err := protojson.Marshal(t)
	if err != nil { // only invalid UTF-8 does this, and the API refuses it
		b = []byte("{}")
	}
	return &record{Task: b, Key: key}
}

// note appends a record that nobody waits for: if it is lost, the one before it
// stands, and a later reader comes to the same end.
func (j *journal) note(r *record) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.write(r)
}

// add appends a record and returns when it is on disk.
func (j *journal) add(r *record) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if err := j.write(r); err != nil {
		return err
	}
	Crash("journal: before the sync")
	defer Crash("journal: after the sync")
	if err := j.f.Sync(); err != nil {
		// The caller is told that this was not written, so a later reader must not
		// find it. Nor may it find the notes since the last sync: the kernel may have
		// dropped them, and goes on to show them until a power cut leaves a hole there,
		// which would be damage in the middle. What it has dropped besides cannot be
		// known: nothing builds on it.
		j.size = j.synced
		j.broken = errors.Join(fmt.Errorf("%w: it could not be made durable: %w", errBroken, err), j.f.Truncate(j.synced))
		return j.broken
	}
	j.synced = j.size
	return nil
}

func (j *journal) write(r *record) error {
	if r.Time.IsZero() {
		r.Time = time.Now().UTC()
	}
	if j.broken != nil {
		return j.broken
	}
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false) // it would make six bytes of each "<"
	if err := enc.Encode(r); err != nil {
		return err
	}
	b := bytes.TrimSuffix(buf.Bytes(), []byte("\n"))
	line := fmt.Appendf(nil, "%08x %s\n", crc32.ChecksumIEEE(b), b)
	if len(line) > maxLine {
		return fmt.Errorf("a record of %d bytes; %d is the limit", len(line), maxLine)
	}
	if n, err := j.f.WriteAt(line, j.size); err != nil {
		if n > 0 {
			j.undo()
		}
		return err
	}
	j.size += int64(len(line))
	return nil
}

// undo cuts off what a write that failed has left, so that the next record does
// not follow half a line. If that fails too, nothing more is written.
func (j *journal) undo() {
	if err := j.f.Truncate(j.size); err != nil {
		j.broken = fmt.Errorf("%w: what a failed write has left cannot be cut off: %w", errBroken, err)
	}
}

func (j *journal) large() bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.size > largeFile
}

// shrink rewrites a journal that has grown large with what is remembered.
func (j *journal) shrink(h *History) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	path := j.f.Name()
	size, err := compact(path, h)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_WRONLY, 0o600)
	if err != nil {
		j.broken = err // what was open is no longer the journal
		return err
	}
	j.f.Close()
	j.f, j.size, j.synced = f, size, size // compact has synced it
	return syncDir(filepath.Dir(path))
}

func (j *journal) close() error { return j.f.Close() }

// syncDir makes a folder's entries durable.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	// Windows flushes no folder that was opened to be read (FlushFileBuffers); NTFS
	// has a journal of names.
	if err := d.Sync(); err != nil && !errors.Is(err, errors.ErrUnsupported) && !errors.Is(err, os.ErrInvalid) && runtime.GOOS != "windows" {
		return fmt.Errorf("sync %s: %w", dir, err)
	}
	return nil
}
