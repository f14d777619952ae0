package guest

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/policy"
	"github.com/carrel-vm/carrel/guest/wire"
)

// A warm guest is started before anybody asks for one:
//
//	warm ── claim ──> claimed ── written down ──> that of one request, like any other
//	  └─────────────────┴── the pool gives it up, nobody watches it for absence ──> removed
//
// Before the claim it has no share, no rule, no secret and no task, and after it
// it is never warm again. Whose it is its folder says, last: a daemon that dies
// before that leaves a guest which nobody will ask for.

// claimTime bounds what a guest's agent has to do for it.
const claimTime = 30 * time.Second

// Fixed says why a guest that runs as is cannot become what was granted, or ""
// if it can. Shares, rules and secrets come live; these do not.
func Fixed(is, granted *api.GuestSpec) (why string) {
	switch {
	case granted.GetName() != is.GetName():
		return "a name of its own"
	case granted.GetImage() != is.GetImage():
		return "another image"
	case granted.GetBoundary() != is.GetBoundary():
		return "another boundary"
	case granted.GetCpus() != is.GetCpus():
		return "other CPUs"
	case granted.GetMemoryMib() != is.GetMemoryMib():
		return "other memory"
	case granted.GetDiskMib() != is.GetDiskMib():
		return "another disk"
	case len(granted.GetVolumes()) > 0:
		return "volumes"
	}
	return ""
}

// ClaimGuest implements the keeper's service. The keeper decides again, on all but
// the folders, of which it can open none: each comes with the process that holds
// it.
func (k *Keeper) ClaimGuest(ctx context.Context, r *connect.Request[api.ClaimGuestRequest]) (*connect.Response[api.ClaimGuestResponse], error) {
	spec := r.Msg.GetSpec()
	refused := func(err error) error {
		return api.NewError(connect.CodeFailedPrecondition, "claim", "guest "+k.info.Name+" cannot become what was asked for: "+err.Error(), "")
	}
	bare := proto.Clone(spec).(*api.GuestSpec)
	if bare != nil {
		bare.Shares = nil
	}
	var rules policy.Rules
	dec := json.NewDecoder(bytes.NewReader(r.Msg.Rules))
	dec.DisallowUnknownFields() // as of a keeper's request: one could narrow something
	if err := dec.Decode(&rules); err != nil {
		return nil, refused(err)
	}
	grant, err := policy.Decide(bare, rules)
	if err != nil {
		return nil, refused(err)
	}
	k.mu.Lock()
	if why := Fixed(k.req.Spec, grant.Spec()); why != "" {
		k.mu.Unlock()
		return nil, refused(errors.New("that has " + why))
	}
	g, mine := k.g, k.warm && k.g != nil && !k.claiming
	k.claiming = k.claiming || mine // whatever comes of it, no other request gets it
	before := gitHosts(k.granted)
	k.mu.Unlock()
	if !mine {
		return nil, refused(errors.New("it is somebody's already, or does not run"))
	}
	end, err := g.rest.use(ctx)
	if err != nil {
		return nil, refused(err)
	}
	defer end()
	ends := g.Cause() // as of one that stood still, and did not go on
	select {
	case <-g.Gone():
		ends = cmp.Or(ends, "it has ended")
	default:
	}
	if ends != "" {
		return nil, refused(errors.New(ends))
	}
	hosts := gitHosts(grant.EgressRules())
	if len(r.Msg.Env) > 0 || !slices.Equal(before, hosts) {
		actx, cancel := context.WithTimeoutCause(ctx, claimTime, errors.New("the guest's agent does not answer"))
		err := g.boot.ask(actx, &wire.Control{Kind: &wire.Control_Claim{Claim: &wire.Claim{Env: r.Msg.Env, GitHosts: hosts}}})
		cancel()
		if err != nil {
			return nil, refused(fmt.Errorf("tell the guest: %w", err))
		}
	}
	k.mu.Lock()
	k.req.Spec, k.warm, k.claimed = proto.Clone(spec).(*api.GuestSpec), false, !spec.Ephemeral
	k.info.Spec = spec
	if k.away != nil {
		k.away.Stop()
	}
	if spec.Ephemeral { // which ends by itself if its caller does not come
		k.away = time.AfterFunc(k.absence(), k.finish)
	} else if k.away = time.AfterFunc(k.absence(), k.cutOff); k.watchers > 0 {
		k.away.Stop()
	}
	k.changedLocked()
	k.mu.Unlock()
	k.rest.set(idleOf(spec, rules))
	k.say("guest.claimed", nil)
	return connect.NewResponse(&api.ClaimGuestResponse{}), nil
}

// cutOff ends a guest whose claim its daemon did not live to write down.
func (k *Keeper) cutOff() {
	warm, err := isWarm(k.dir)
	k.mu.Lock()
	defer k.mu.Unlock()
	switch {
	case !k.claimed || k.watchers > 0: // who has come back sees to it
	case err != nil: // it may be somebody's
		k.log.Error("whose the guest is", "error", err)
		k.away.Reset(k.absence())
	case warm:
		k.finish()
	default:
		k.claimed = false
	}
}

// watched counts who watches a guest that is not known to be somebody's: when
// nobody does for long enough, its daemon is gone, and nobody will ask for it.
func (k *Keeper) watched() (end func()) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.watchers++
	if (k.warm || k.claimed) && k.away != nil {
		k.away.Stop()
	}
	return func() {
		k.mu.Lock()
		defer k.mu.Unlock()
		if k.watchers--; k.watchers == 0 && (k.warm || k.claimed) && k.away != nil {
			k.away.Reset(k.absence())
		}
	}
}

// UnclaimedBound is how long the keeper of a guest that is nobody's takes to end
// after KillKeeper.
const UnclaimedBound = StopBound + keeperOutlives
