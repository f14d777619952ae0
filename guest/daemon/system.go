package daemon

import (
	"context"
	"os"
	"sync"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/carrel-vm/carrel/guest"
	"github.com/carrel-vm/carrel/guest/api"
)

// systemService implements SystemService.
type systemService struct{ d *Daemon }

// Version implements SystemService.
func (s *systemService) Version(context.Context, *connect.Request[api.VersionRequest]) (*connect.Response[api.VersionResponse], error) {
	return connect.NewResponse(s.d.opts.Version), nil
}

// Status implements SystemService.
func (s *systemService) Status(context.Context, *connect.Request[api.StatusRequest]) (*connect.Response[api.StatusResponse], error) {
	d := s.d
	out := &api.StatusResponse{
		Pid: int32(os.Getpid()), Started: timestamppb.New(d.started), Socket: d.opts.Place.Socket,
		StateDir: d.opts.Place.State, CacheDir: d.opts.Place.Cache, Version: d.opts.Version, ResidentBytes: residentBytes(),
	}
	for _, e := range d.everyEntry() {
		_, k, _ := e.get()
		switch {
		case d.isWarm(e) && k != nil:
			out.GuestsWarm++
		case d.isWarm(e):
		case k != nil:
			out.Guests, out.GuestsRunning = out.Guests+1, out.GuestsRunning+1
		default:
			out.Guests++
		}
	}
	return connect.NewResponse(out), nil
}

// entries are the guests that are somebody's.
func (d *Daemon) entries() (es []*entry) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, e := range d.table {
		if e.warm == nil {
			es = append(es, e)
		}
	}
	return es
}

// everyEntry are all guests, also those that wait in the pool.
func (d *Daemon) everyEntry() (es []*entry) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, e := range d.table {
		es = append(es, e)
	}
	return es
}

// Shutdown implements SystemService.
func (s *systemService) Shutdown(ctx context.Context, r *connect.Request[api.ShutdownRequest]) (*connect.Response[api.ShutdownResponse], error) {
	s.d.mu.Lock()
	s.d.closing = true
	s.d.mu.Unlock()
	if r.Msg.Guests {
		var all sync.WaitGroup
		for _, e := range s.d.entries() {
			all.Go(func() {
				grace := guest.StopGrace
				if s.d.isWarm(e) { // nobody has anything in it
					grace = 0
				}
				s.d.end(ctx, e, grace)
				e.wait(ctx, func(_ *api.Guest, k *keeper) bool { return k == nil })
			})
		}
		all.Wait()
	}
	s.d.emptyPool()
	s.d.stopped.Do(func() { close(s.d.stop) })
	return connect.NewResponse(&api.ShutdownResponse{}), nil
}
