package daemon

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/carrel-vm/carrel/guest"
	"github.com/carrel-vm/carrel/guest/audit"
	"github.com/carrel-vm/carrel/guest/place"
	"github.com/carrel-vm/carrel/guest/policy"
)

// cursor is how far the receiver of telemetry has what the logs hold.
type cursor struct {
	Version int                       `json:"version"`
	Events  uint64                    `json:"events"`
	Audits  map[string]audit.Position `json:"audits"` // by auditKey
}

// fileCursor, in the state folder, holds it. maxCursor bounds it, in bytes.
const (
	fileCursor = "telemetry.json"
	maxCursor  = 1 << 20
)

// loadCursor reads it; where there is none, or none that can be read, everything
// is still to be sent.
func loadCursor(state string) (cursor, error) {
	none := cursor{Version: 1, Audits: map[string]audit.Position{}}
	path := filepath.Join(state, fileCursor)
	fi, err := os.Stat(path)
	if errors.Is(err, os.ErrNotExist) {
		return none, nil
	}
	var b []byte
	if err == nil && fi.Size() > maxCursor {
		err = fmt.Errorf("%s is larger than %d bytes", path, maxCursor)
	}
	if err == nil {
		b, err = os.ReadFile(path)
	}
	var c cursor
	if err == nil {
		err = json.Unmarshal(b, &c)
	}
	if err == nil && c.Version != 1 {
		err = fmt.Errorf("%s is of format %d", path, c.Version)
	}
	if err != nil {
		return none, err
	}
	if c.Audits == nil {
		c.Audits = none.Audits
	}
	return c, nil
}

func (c cursor) save(state string) error {
	b, err := json.Marshal(c)
	if err != nil {
		return err
	}
	return policy.WriteFile(filepath.Join(state, fileCursor), b)
}

func (c cursor) clone() cursor {
	c.Audits = maps.Clone(c.Audits)
	return c
}

// auditKey tells a guest's audit log from that of another guest which had or will
// have its name.
func auditKey(name string, created time.Time) string {
	return name + "@" + strconv.FormatInt(created.UnixNano(), 10)
}

// lastKey is the auditKey of a guest that goes. One whose start failed has said
// to nobody since when it is there: its folder knows, and else it is now.
func (d *Daemon) lastKey(e *entry) string {
	info, _, _ := e.get()
	if info.GetCreated() == nil {
		info, _, _ = guest.Load(d.dir(e))
	}
	if info.GetCreated() == nil {
		return auditKey(e.name, time.Now())
	}
	return auditKey(e.name, info.Created.AsTime())
}

func guestOf(key string) (name string, ok bool) {
	name, n, ok := strings.Cut(key, "@")
	_, err := strconv.ParseInt(n, 10, 64)
	return name, ok && err == nil
}

// auditLog is where one lies.
type auditLog struct {
	dir     string
	removed bool // its guest is gone
}

// auditDirs are the audit logs of guests that were named, and all that removed
// guests left behind, by auditKey.
func (d *Daemon) auditDirs(guests map[string]bool) map[string]auditLog {
	out := map[string]auditLog{}
	for _, e := range d.entries() {
		// One that has not begun to be made has nothing in its log that would be its
		// own alone, and is looked at when it has.
		if info, _, _ := e.get(); guests[e.name] && info.GetCreated() != nil {
			out[auditKey(e.name, info.Created.AsTime())] = auditLog{dir: d.auditDir(e.name)}
		}
	}
	for _, key := range d.spooled() {
		out[key] = auditLog{dir: filepath.Join(d.spool(), key), removed: true}
	}
	return out
}

// Bounds of what removed guests leave behind for a receiver that does not answer.
const maxSpooled = 512 // logs; the oldest go

// spool is where the audit logs of removed guests wait to be sent.
func (d *Daemon) spool() string { return filepath.Join(d.opts.Place.State, "telemetry") }

// spooled are the keys of the logs that wait, the oldest guest's first.
func (d *Daemon) spooled() (keys []string) {
	es, err := os.ReadDir(d.spool())
	if err != nil {
		return nil
	}
	for _, e := range es {
		if _, ok := guestOf(e.Name()); ok && e.IsDir() {
			keys = append(keys, e.Name())
		}
	}
	made := func(key string) string { _, n, _ := strings.Cut(key, "@"); return n }
	slices.SortFunc(keys, func(a, b string) int { return strings.Compare(made(a), made(b)) })
	return keys
}

// keepAudit sets a guest's audit log aside before the guest's folder goes, if
// somebody is to have it; that of a guest of the pool, which was nobody's, goes
// with it. It is a rename: the receiver is waited for by nobody.
func (d *Daemon) keepAudit(e *entry) {
	if !d.telemetry.on() || d.isWarm(e) {
		return
	}
	err := place.MakePrivate(d.spool())
	if err == nil {
		err = os.Rename(d.auditDir(e.name), filepath.Join(d.spool(), d.lastKey(e)))
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		d.log.Error("keep the audit log of a removed guest until it is sent", "guest", e.name, "error", err)
		d.telemetry.lose("spool")
		return
	}
	if all := d.spooled(); len(all) > maxSpooled {
		for _, key := range all[:len(all)-maxSpooled] {
			d.log.Warn("an audit log is thrown away before it was sent: too many wait", "guest", key)
			d.telemetry.lose("spool")
			d.dropSpooled(key)
		}
	}
	d.telemetry.changed(e.name)
}

// dropSpooled removes a log that was sent, or that has no room.
func (d *Daemon) dropSpooled(key string) {
	if err := os.RemoveAll(filepath.Join(d.spool(), key)); err != nil {
		d.log.Warn("remove an audit log that was sent", "guest", key, "error", err)
	}
}
