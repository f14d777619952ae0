package daemon

import (
	"context"
	"fmt"
	"os"
	"sync"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/carrel-vm/carrel/guest"
	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/api/apiconnect"
	"github.com/carrel-vm/carrel/guest/policy"
)

// systemService implements SystemService.
type systemService struct {
	apiconnect.UnimplementedSystemServiceHandler
	d *Daemon
}

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
	for _, e := range d.entries() {
		out.Guests++
		if _, k, _ := e.get(); k != nil {
			out.GuestsRunning++
		}
	}
	return connect.NewResponse(out), nil
}

func (d *Daemon) entries() (es []*entry) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, e := range d.table {
		es = append(es, e)
	}
	return es
}

// Doctor implements SystemService.
func (s *systemService) Doctor(ctx context.Context, _ *connect.Request[api.DoctorRequest], st *connect.ServerStream[api.Finding]) error {
	var sent error
	found := func(f *api.Finding) {
		if sent == nil {
			sent = st.Send(f)
		}
	}
	s.d.opts.Doctor(ctx, found)
	s.d.doctorRoom(found)
	img, err := s.d.opts.Images.Get(ctx, policy.DefaultImage)
	if err != nil {
		found(&api.Finding{Check: "image", Level: api.FindingLevel_FINDING_LEVEL_BAD, Text: err.Error(), Cure: "carrel image build"})
	} else {
		found(&api.Finding{Check: "image", Level: api.FindingLevel_FINDING_LEVEL_GOOD, Text: fmt.Sprintf("image %s is whole (kernel %s)", img.Name, img.Manifest.KernelVersion)})
	}
	bad := 0
	for _, e := range s.d.entries() {
		if info, _, _ := e.get(); info.State == api.GuestState_GUEST_STATE_DAMAGED {
			bad++
			found(&api.Finding{Check: "guest", Level: api.FindingLevel_FINDING_LEVEL_BAD, Text: "guest " + e.name + ": " + info.Cause, Cure: "carrel rm --force " + e.name})
		}
	}
	if bad == 0 {
		found(&api.Finding{Check: "guests", Level: api.FindingLevel_FINDING_LEVEL_GOOD, Text: fmt.Sprintf("the state of %d guests can be read", len(s.d.entries()))})
	}
	return sent
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
				s.d.end(ctx, e, guest.StopGrace)
				e.wait(ctx, func(_ *api.Guest, k *keeper) bool { return k == nil })
			})
		}
		all.Wait()
	}
	s.d.stopped.Do(func() { close(s.d.stop) })
	return connect.NewResponse(&api.ShutdownResponse{}), nil
}
