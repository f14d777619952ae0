package daemon

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sort"

	"connectrpc.com/connect"
	"github.com/dustin/go-humanize"

	"github.com/carrel-vm/carrel/guest"
	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/place"
)

// diskService implements DiskService.
type diskService struct{ d *Daemon }

func sizeWord(bytes int64) string { return humanize.IBytes(uint64(max(bytes, 0))) }

// Usage implements DiskService.
func (s *diskService) Usage(ctx context.Context, r *connect.Request[api.DiskUsageRequest]) (*connect.Response[api.DiskUsageResponse], error) {
	es := s.d.entries()
	if r.Msg.Guest != "" {
		e, err := s.d.find(r.Msg.Guest)
		if err != nil {
			return nil, err
		}
		es = []*entry{e}
	}
	out := new(api.DiskUsageResponse)
	for _, e := range es {
		u, err := usage(ctx, s.d.dir(e))
		if err != nil {
			return nil, api.NewError(connect.CodeInternal, "disk", "measure guest "+e.name+": "+err.Error(), "")
		}
		u.Guest = e.name
		out.Guests = append(out.Guests, u)
	}
	sort.Slice(out.Guests, func(i, j int) bool { return out.Guests[i].Guest < out.Guests[j].Guest })
	out.FreeBytes, out.FloorBytes, _ = place.Room(s.d.guests, floorOf(s.d.rulesNow())) // an error says that it is less
	return connect.NewResponse(out), nil
}

// usage measures a guest's folder by its parts.
func usage(ctx context.Context, dir string) (*api.GuestUsage, error) {
	u := new(api.GuestUsage)
	es, err := os.ReadDir(dir)
	if os.IsNotExist(err) {
		return u, nil // it was removed meanwhile
	}
	for _, e := range es {
		n, err := takes(ctx, filepath.Join(dir, e.Name()))
		if err != nil {
			return nil, err
		}
		switch guest.PartOf(e.Name()) {
		case guest.PartDisk:
			u.DiskBytes += n
		case guest.PartReview:
			u.ReviewBytes += n
		case guest.PartOutput:
			u.OutputBytes += n
		default:
			u.OtherBytes += n
		}
	}
	return u, err
}

// takes is what a file, or all that lies in a folder, takes on its disk. What
// goes away meanwhile, or cannot be looked at, counts nothing.
func takes(ctx context.Context, path string) (n int64, err error) {
	err = filepath.WalkDir(path, func(_ string, e fs.DirEntry, err error) error {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			return nil
		}
		if fi, err := e.Info(); err == nil {
			n += blocksOf(fi)
		}
		return nil
	})
	return n, err
}

// Prune implements DiskService.
func (s *diskService) Prune(ctx context.Context, r *connect.Request[api.PruneRequest]) (*connect.Response[api.PruneResponse], error) {
	all, err := s.d.unneeded(ctx, r.Msg.Volumes)
	if err != nil {
		return nil, refusal(err)
	}
	out := new(api.PruneResponse)
	for _, p := range all {
		if len(r.Msg.Only) > 0 && !p.among(r.Msg.Only) {
			continue
		}
		if !r.Msg.DryRun {
			if err := p.remove(); err != nil {
				p.Refused = err.Error()
			} else {
				out.FreedBytes += p.Bytes
			}
		}
		out.Items = append(out.Items, p.PruneItem)
	}
	return connect.NewResponse(out), nil
}

// pruned is one thing that may go, and how.
type pruned struct {
	*api.PruneItem
	remove func() error
}

func (p pruned) among(list []*api.PruneItem) bool {
	for _, o := range list {
		if o.GetKind() == p.Kind && o.GetName() == p.Name {
			return true
		}
	}
	return false
}

// unneeded lists what nobody needs:
//
//  1. guests of which only what undo needs is left
//  2. templates of disks that no guest has
//  3. pulled images to which no name leads, and layers of none
//  4. volumes that no guest names, if they are asked for
func (d *Daemon) unneeded(ctx context.Context, volumes bool) (all []pruned, err error) {
	add := func(kind, name, reason, path string, remove func() error) error {
		n, err := takes(ctx, path)
		all = append(all, pruned{&api.PruneItem{Kind: kind, Name: name, Bytes: n, Reason: reason}, remove})
		return err
	}
	for _, e := range d.entries() {
		e.mu.Lock()
		why := e.kept.Why
		e.mu.Unlock()
		if why != api.GuestKept_GUEST_KEPT_UNDO {
			continue
		}
		if err := add("guest", e.name, "its task is done, and only what undo needs is left of it", d.dir(e), func() error { return d.dropUndo(e) }); err != nil {
			return nil, err
		}
	}
	sizes := map[uint32]bool{}
	for _, e := range d.entries() {
		info, _, _ := e.get()
		sizes[info.GetSpec().GetDiskMib()] = true
	}
	dir := templatesIn(d.opts.Place.Cache)
	for _, name := range oldTemplates(dir, sizes) {
		path := filepath.Join(dir, name)
		if err := add("template", name, "no guest has a disk of its size and make", path, func() error { return removeTemplate(dir, name) }); err != nil {
			return nil, err
		}
	}
	if p, err := d.pruneImages(ctx, false, true); err != nil {
		return nil, err
	} else if len(p.Images)+p.Blobs > 0 {
		// The name counts them, so that it is another one when more have come.
		item := &api.PruneItem{Kind: "image", Name: fmt.Sprintf("%d images, %d blobs", len(p.Images), p.Blobs), Bytes: p.Bytes, Reason: "no name leads to them, and no guest runs from them"}
		all = append(all, pruned{item, func() error {
			_, err := d.pruneImages(ctx, false, false)
			return err
		}})
	}
	if volumes {
		names, err := d.volumeNames()
		if err != nil {
			return nil, err
		}
		for _, name := range names {
			if guests, _ := d.volumeUsers(name); len(guests) > 0 {
				continue
			}
			if err := add("volume", name, "no guest names it", d.volumeDir(name), func() error { return d.removeVolume(name, false) }); err != nil {
				return nil, err
			}
		}
	}
	sort.SliceStable(all, func(i, j int) bool {
		return all[i].Kind < all[j].Kind || all[i].Kind == all[j].Kind && all[i].Name < all[j].Name
	})
	return all, nil
}

// dropUndo removes a guest of which only undo is left, unless somebody looks at
// it or its user made it their own meanwhile.
func (d *Daemon) dropUndo(e *entry) error {
	if !e.review.TryAcquire(readers) {
		return fmt.Errorf("somebody looks at what guest %s changed", e.name)
	}
	defer e.review.Release(readers)
	if err := e.take("removed"); err != nil {
		return err
	}
	defer e.release()
	e.mu.Lock()
	why := e.kept.Why
	if e.expire != nil {
		e.expire.Stop()
	}
	e.mu.Unlock()
	if why != api.GuestKept_GUEST_KEPT_UNDO {
		return fmt.Errorf("guest %s was started again", e.name)
	}
	return d.discardMine(e)
}
