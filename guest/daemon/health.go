package daemon

import (
	"context"
	"errors"
	"strings"

	"connectrpc.com/connect"

	"github.com/carrel-vm/carrel/guest"
	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/place"
)

// maxRequest bounds one request to the daemon, in bytes.
const maxRequest = 2 << 20

// Health implements SystemService. What Doctor looks at beside this takes longer,
// or starts something.
func (s *systemService) Health(context.Context, *connect.Request[api.HealthRequest]) (*connect.Response[api.HealthResponse], error) {
	d, out := s.d, &api.HealthResponse{Healthy: true}
	bad := func(check, text, cure string) {
		out.Healthy = false
		out.Problems = append(out.Problems, &api.Finding{Check: check, Level: api.FindingLevel_FINDING_LEVEL_BAD, Text: text, Cure: cure})
	}
	d.mu.Lock()
	closing := d.closing
	d.mu.Unlock()
	if closing {
		bad("daemon", "the daemon is being shut down", "")
	}
	if _, err := d.decide(&api.GuestSpec{Name: "new"}); err != nil && policyBroken(err) {
		cause, cure := apart(err.Error())
		bad("policy", cause, cure)
	}
	floor := floorOf(d.rulesNow())
	for _, dir := range []string{d.guests, d.opts.Place.Cache} {
		if _, _, err := place.Room(dir, floor); errors.Is(err, place.ErrNoRoom) {
			bad("disk", err.Error()+": no guest is started and no image made", noRoomCure)
		}
	}
	for _, e := range d.entries() {
		if info, _, _ := e.get(); info.State == api.GuestState_GUEST_STATE_DAMAGED {
			out.Problems = append(out.Problems, &api.Finding{Check: "guest", Level: api.FindingLevel_FINDING_LEVEL_NOTE, Text: "guest " + e.name + ": " + info.Cause, Cure: "carrel rm --force " + e.name})
		}
	}
	return connect.NewResponse(out), nil
}

// Capabilities implements SystemService.
func (s *systemService) Capabilities(context.Context, *connect.Request[api.CapabilitiesRequest]) (*connect.Response[api.CapabilitiesResponse], error) {
	o, host := s.d.opts, s.d.rulesNow().Host
	out := &api.CapabilitiesResponse{Api: o.Version.GetApi(), Driver: o.Driver, Limits: &api.Limits{
		Guests: maxGuests, TasksPerGuest: guest.MaxTasks, RequestBytes: maxRequest, SpoolBytes: guest.SpoolMax,
		Events: maxEvents, Connections: guest.MaxConns, Starts: int32(host.AtOnce()), StartsWaiting: int32(host.Places()),
	}}
	for _, m := range api.Methods(api.Socket_SOCKET_DAEMON) {
		out.Methods = append(out.Methods, strings.TrimPrefix(m, "/"))
	}
	if noMachines {
		out.Missing = append(out.Missing, "machines")
	}
	if len(o.Review) == 0 {
		out.Missing = append(out.Missing, "review")
	}
	if len(o.Share) == 0 {
		out.Missing = append(out.Missing, "shares.live")
	}
	return connect.NewResponse(out), nil
}
