package daemon

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/gofrs/flock"

	"github.com/carrel-vm/carrel/guest/place"
	"github.com/carrel-vm/carrel/guest/policy"
	"github.com/carrel-vm/carrel/hypervisor"
)

// journalMiB is the size of a disk's journal. There is one, a small one: a guest
// may be killed at any instant, and what waits in its reviews lies on this disk.
func journalMiB(mib uint32) uint32 { return min(32, mib/8) }

// reserved is the part of a disk, in per cent, that only the guest's root may
// fill: up to 64 MiB, so that in a guest whose task has filled its disk there is
// room for root to look around and mend it.
func reserved(mib uint32) float64 { return min(5, 6400/float64(mib)) }

// maxTemplates bounds the templates that are kept, each of a few hundred KiB.
const maxTemplates = 8

// makeScratch makes the guest's disk once: a sparse file with an empty ext4, so
// that it takes only the room that is used. It is a copy of a template in the
// cache folder, where there is one of its size: mkfs takes longer than some
// guests do to start.
func makeScratch(ctx context.Context, cache, path string, mib uint32) error {
	if _, err := os.Lstat(path); err == nil {
		return nil
	}
	err := fromTemplate(ctx, cache, path, mib)
	if errors.Is(err, errors.ErrUnsupported) {
		err = mkfs(ctx, path, mib)
	}
	var he *hypervisor.Error
	if err != nil && !errors.As(err, &he) {
		return &hypervisor.Error{Op: "make the guest's disk", Err: err, Cure: "make room on the disk that holds " + filepath.Dir(path)}
	}
	return err
}

// fromTemplate copies the template of that size, and makes it first where there
// is none.
func fromTemplate(ctx context.Context, cache, path string, mib uint32) error {
	dir := templatesIn(cache)
	template := filepath.Join(dir, templateName(mib))
	err := copySparse(template, path, int64(mib)<<20)
	if err == nil || errors.Is(err, errors.ErrUnsupported) {
		return err
	}
	if err := place.MakePrivate(dir); err != nil {
		return err
	}
	lock := flock.New(filepath.Join(dir, "lock"), flock.SetPermissions(0o600))
	if err := lock.Lock(); err != nil { // daemons may share a cache
		return fmt.Errorf("lock %s: %w", lock.Path(), err)
	}
	defer lock.Close()
	if err := copySparse(template, path, int64(mib)<<20); err == nil {
		return nil
	}
	if err := tidyTemplates(dir, filepath.Base(template)); err != nil {
		return err
	}
	if err := mkfs(ctx, template, mib); err != nil {
		return err
	}
	return copySparse(template, path, int64(mib)<<20)
}

// mkfsVersion is that of mkfsOptions.
const mkfsVersion = "3"

func templatesIn(cache string) string { return filepath.Join(cache, "scratch") }

func templateName(mib uint32) string { return fmt.Sprintf("ext4-%d-%s.img", mib, mkfsVersion) }

// oldTemplates are those for disks of sizes that nobody has and that are not
// the default, and what other versions of Carrel, or crashes, have left.
func oldTemplates(dir string, sizes map[uint32]bool) (names []string) {
	es, err := os.ReadDir(dir)
	if err != nil {
		return nil // there are none yet
	}
	needed := map[string]bool{"lock": true, templateName(policy.DefaultDiskMiB): true}
	for mib := range sizes {
		needed[templateName(mib)] = true
	}
	for _, e := range es {
		if !needed[e.Name()] && e.Type().IsRegular() {
			names = append(names, e.Name())
		}
	}
	return names
}

// removeTemplate removes one, unless it is being made.
func removeTemplate(dir, name string) error {
	lock := flock.New(filepath.Join(dir, "lock"), flock.SetPermissions(0o600))
	defer lock.Close()
	if ok, err := lock.TryLock(); err != nil || !ok {
		return errors.Join(err, errors.New("a template is being made"))
	}
	return os.Remove(filepath.Join(dir, name))
}

// tidyTemplates removes what a crash left half made, the template that is about
// to be made again, and all but the newest of the others.
func tidyTemplates(dir, but string) error {
	es, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	type old struct {
		name string
		at   int64
	}
	var kept []old
	for _, f := range es {
		switch name := f.Name(); {
		case name == "lock":
		case name == but || strings.HasSuffix(name, ".new"):
			err = errors.Join(err, os.Remove(filepath.Join(dir, name)))
		default:
			if fi, ferr := f.Info(); ferr == nil {
				kept = append(kept, old{name, fi.ModTime().UnixNano()})
			}
		}
	}
	slices.SortFunc(kept, func(a, b old) int { return int(min(max(b.at-a.at, -1), 1)) })
	for _, o := range kept[min(len(kept), maxTemplates-1):] {
		err = errors.Join(err, os.Remove(filepath.Join(dir, o.name)))
	}
	return err
}

// mkfs makes an empty disk at path, whole or not at all, also over a loss of
// power: a damaged template would be every guest's disk.
func mkfs(ctx context.Context, path string, mib uint32) error {
	tmp := path + ".new"
	os.Remove(tmp)
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	defer os.Remove(tmp)
	if err := makeDisk(ctx, f, mib); err != nil {
		return err
	}
	if err := errors.Join(f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Rename(tmp, path)
}
