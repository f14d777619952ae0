package daemon

import (
	"context"
	"errors"
	"sort"
	"time"

	"connectrpc.com/connect"

	"github.com/carrel-vm/carrel/guest"
	"github.com/carrel-vm/carrel/guest/api"
)

// guestService implements GuestService.
type guestService struct{ d *Daemon }

// Start implements GuestService.
func (s *guestService) Start(ctx context.Context, r *connect.Request[api.StartGuestRequest], st *connect.ServerStream[api.StartGuestEvent]) error {
	spec := r.Msg.GetSpec()
	if spec == nil {
		spec = new(api.GuestSpec)
	}
	notice := func(text string) error {
		return st.Send(&api.StartGuestEvent{Kind: &api.StartGuestEvent_Notice{Notice: text}})
	}
	info, err := s.d.onceGuest(ctx, r.Msg, func(by guest.Making) (*api.Guest, error) {
		return s.begin(ctx, spec, r.Msg.OnlyNew, by, notice, st)
	}, func(e *entry) (*api.Guest, error) {
		// It was made and not answered. If it comes up that is the answer.
		info, err := e.wait(ctx, func(i *api.Guest, k *keeper) bool {
			return k == nil || i.State == api.GuestState_GUEST_STATE_READY
		})
		if err != nil || info.State == api.GuestState_GUEST_STATE_READY {
			return info, err
		}
		return s.begin(ctx, &api.GuestSpec{Name: e.name}, false, e.by, notice, st)
	})
	if err != nil {
		return err
	}
	guest.Crash("start: before the acknowledgement")
	return st.Send(&api.StartGuestEvent{Kind: &api.StartGuestEvent_Guest{Guest: info}})
}

// begin starts a new guest, or a stopped one again, and returns when it is ready.
func (s *guestService) begin(ctx context.Context, spec *api.GuestSpec, onlyNew bool, by guest.Making, notice func(string) error, st *connect.ServerStream[api.StartGuestEvent]) (*api.Guest, error) {
	defer s.d.refill()
	info, cold, err := s.d.claim(ctx, spec, by, notice)
	if info != nil || err != nil {
		return info, err
	}
	if err := s.d.mayWait(ctx); err != nil {
		return nil, err
	}
	if err := s.d.finished(ctx, spec.Name); err != nil {
		return nil, err
	}
	e, fresh, err := s.d.reserve(spec, onlyNew, by)
	if err != nil {
		return nil, err
	}
	e.startsCold(cold)
	defer e.release()
	if !fresh {
		if err := s.d.restartable(ctx, e, spec); err != nil {
			return nil, err
		}
	}
	err = s.d.pin(ctx, e, st)
	if err == nil {
		info, err = s.inTurn(ctx, e, fresh, notice, st)
	}
	if err != nil {
		if fresh {
			s.d.discard(e)
		}
		return nil, refusal(err)
	}
	return info, nil
}

// Stop implements GuestService.
func (s *guestService) Stop(ctx context.Context, r *connect.Request[api.StopGuestRequest]) (*connect.Response[api.StopGuestResponse], error) {
	e, err := s.d.find(r.Msg.Name)
	if err != nil {
		return nil, err
	}
	info, k, _ := e.get()
	if k == nil {
		if info.StoppedIdle {
			if err := s.d.staysStopped(ctx, e); err != nil {
				return nil, err
			}
			info, _, _ = e.get()
		}
		return connect.NewResponse(&api.StopGuestResponse{Guest: info}), nil
	}
	grace := guest.StopGrace
	if n := r.Msg.GraceNanos; n > 0 {
		grace = min(guest.StopBound, time.Duration(n))
	}
	s.d.end(ctx, e, grace)
	info, err = e.wait(ctx, func(_ *api.Guest, now *keeper) bool { return now != k })
	if err == nil && info.StoppedIdle { // it was about to stop by itself
		if err = s.d.staysStopped(ctx, e); err == nil {
			info, _, _ = e.get()
		}
	}
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&api.StopGuestResponse{Guest: info}), nil
}

// Remove implements GuestService.
func (s *guestService) Remove(ctx context.Context, r *connect.Request[api.RemoveGuestRequest]) (*connect.Response[api.RemoveGuestResponse], error) {
	e, err := s.d.find(r.Msg.Name)
	if err != nil {
		return nil, err
	}
	if r.Msg.Force && e.resumes() { // which takes as long as its guest likes
		s.d.end(ctx, e, 0)
	}
	if err := e.finished(ctx); err != nil {
		return nil, err
	}
	if err := e.take("removed"); err != nil {
		return nil, err
	}
	defer e.release()
	e.mu.Lock()
	if e.expire != nil {
		e.expire.Stop()
	}
	e.mu.Unlock()
	if _, k, _ := e.get(); k != nil {
		if !r.Msg.Force {
			return nil, api.NewError(connect.CodeFailedPrecondition, "running", "guest "+e.name+" is running", "carrel stop "+e.name+", or carrel rm --force "+e.name)
		}
		s.d.end(ctx, e, 0)
		if _, err := e.wait(ctx, func(_ *api.Guest, k *keeper) bool { return k == nil }); err != nil {
			return nil, err
		}
	}
	if !r.Msg.Force {
		if unlock, free, err := guest.Lock(s.d.dir(e)); err == nil && !free { // it was set aside, and lives
			return nil, api.NewError(connect.CodeFailedPrecondition, "running", "guest "+e.name+" is running", "carrel rm --force "+e.name)
		} else if err == nil {
			unlock()
		}
		if err := s.d.nothingWaits(ctx, e); err != nil {
			return nil, err
		}
	}
	if err := s.d.discard(e); err != nil {
		var own *connect.Error
		if errors.As(err, &own) {
			return nil, own
		}
		return nil, api.NewError(connect.CodeInternal, "disk", err.Error(), "")
	}
	s.d.refill()
	return connect.NewResponse(&api.RemoveGuestResponse{}), nil
}

// List implements GuestService.
func (s *guestService) List(context.Context, *connect.Request[api.ListGuestsRequest]) (*connect.Response[api.ListGuestsResponse], error) {
	out := new(api.ListGuestsResponse)
	for _, e := range s.d.entries() {
		info, _, _ := e.get()
		out.Guests = append(out.Guests, info)
	}
	sort.Slice(out.Guests, func(i, j int) bool { return out.Guests[i].Name < out.Guests[j].Name })
	return connect.NewResponse(out), nil
}

// Inspect implements GuestService.
func (s *guestService) Inspect(ctx context.Context, r *connect.Request[api.InspectGuestRequest]) (*connect.Response[api.InspectGuestResponse], error) {
	e, err := s.d.find(r.Msg.Name)
	if err != nil {
		return nil, err
	}
	info, _, _ := e.get()
	if info.Tasks, err = s.d.tasks(ctx, e); err != nil {
		return nil, err
	}
	return connect.NewResponse(&api.InspectGuestResponse{Guest: info}), nil
}
