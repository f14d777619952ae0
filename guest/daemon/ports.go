package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/carrel-vm/carrel/guest"
	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/api/apiconnect"
	"github.com/carrel-vm/carrel/guest/policy"
)

// filePorts is the file in a guest's folder that lists the ports that lead into
// it, for the daemon that adopts it: they are the egress process's, and go with
// it.
const filePorts = "ports.json"

// Publish implements EgressService.
func (s *egressService) Publish(ctx context.Context, r *connect.Request[api.PublishRequest]) (*connect.Response[api.PublishResponse], error) {
	out, err := once(ctx, s.d, apiconnect.EgressServicePublishProcedure, r.Msg, func(made) (*api.PublishResponse, error) { return s.publish(ctx, r) })
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(out), nil
}

func (s *egressService) publish(ctx context.Context, r *connect.Request[api.PublishRequest]) (*api.PublishResponse, error) {
	p := r.Msg.GetPort()
	if p.GetGuestPort() == 0 || p.GetGuestPort() > 65535 || p.GetHostPort() > 65535 {
		return nil, api.NewError(connect.CodeInvalidArgument, "bad_port", fmt.Sprintf("port %d:%d is not possible", p.GetHostPort(), p.GetGuestPort()), "HOSTPORT:GUESTPORT, each 1 to 65535")
	}
	var e *entry
	var res *connect.Response[api.PublishResponse]
	for stays := false; !stays; {
		at, k, err := s.d.up(ctx, r.Msg.Guest)
		if err != nil {
			return nil, err
		}
		edge := at.edgeOf()
		if edge == nil {
			return nil, notRunning(at.name)
		}
		pctx, cancel := context.WithTimeout(ctx, edgeTime)
		var perr error
		e = at
		res, perr = edge.own.Publish(pctx, connect.NewRequest(&api.PublishRequest{Port: p, IdempotencyKey: r.Msg.IdempotencyKey}))
		cancel()
		stays = s.d.stays(ctx, at, k)
		if stays && perr != nil {
			return nil, s.d.edgeError(e, perr)
		}
	}
	guest.Crash("once: a port is open, before it is written down")
	s.d.setPorts(e, func(ps []*api.Port) []*api.Port {
		known := func(p *api.Port) bool { return p.HostPort == res.Msg.Port.GetHostPort() }
		return append(slices.DeleteFunc(ps, known), res.Msg.Port)
	})
	s.d.record(e, "port.opened", res.Msg.Port)
	s.d.log.Info("port published", "guest", e.name, "host", res.Msg.Port.GetHostPort(), "port", res.Msg.Port.GetGuestPort())
	return res.Msg, nil
}

// stays is false of a guest that was just being stopped for idleness, and has stopped:
// a port that was opened then has gone with it. Of one that stays the keeper counts
// anew from here on, and with a port it is not stopped. It is asked to forget a share
// that there is not, which changes nothing, and is taken up by a guest that stays.
func (d *Daemon) stays(ctx context.Context, e *entry, k *keeper) bool {
	_, err := k.own.DropReview(ctx, connect.NewRequest(&api.DropReviewRequest{}))
	return err == nil || !d.again(ctx, e, k, err)
}

// Unpublish implements EgressService.
func (s *egressService) Unpublish(ctx context.Context, r *connect.Request[api.UnpublishRequest]) (*connect.Response[api.UnpublishResponse], error) {
	e, edge, err := s.running(r.Msg.Guest)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, edgeTime)
	defer cancel()
	res, err := edge.own.Unpublish(ctx, connect.NewRequest(&api.UnpublishRequest{HostPort: r.Msg.HostPort}))
	if err != nil {
		return nil, s.d.edgeError(e, err)
	}
	s.d.setPorts(e, func(ps []*api.Port) []*api.Port {
		return slices.DeleteFunc(ps, func(p *api.Port) bool { return p.HostPort == r.Msg.HostPort })
	})
	s.d.record(e, "port.closed", &api.Port{HostPort: r.Msg.HostPort})
	return connect.NewResponse(res.Msg), nil
}

// setPorts changes the list of a guest's ports. That it cannot be kept costs
// only that the next daemon does not show it.
func (d *Daemon) setPorts(e *entry, f func([]*api.Port) []*api.Port) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.ports = f(slices.Clone(e.ports))
	e.changedLocked()
	out := []json.RawMessage{}
	for _, p := range e.ports {
		if b, err := protojson.Marshal(p); err == nil {
			out = append(out, b)
		}
	}
	b, err := json.Marshal(out)
	if err == nil {
		err = policy.WriteFile(filepath.Join(d.dir(e), filePorts), b)
	}
	if err != nil {
		d.log.Error("keep the list of ports", "guest", e.name, "error", err)
	}
}

// loadPorts reads the list for a guest that is adopted.
func (d *Daemon) loadPorts(e *entry) (ports []*api.Port) {
	const most = 64 << 10 // bytes; an egress process opens 64 ports at most
	path := filepath.Join(d.dir(e), filePorts)
	fi, err := os.Stat(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	var b []byte
	if err == nil && fi.Size() > most {
		err = fmt.Errorf("%s is larger than %d bytes", path, most)
	}
	if err == nil {
		b, err = os.ReadFile(path)
	}
	var raw []json.RawMessage
	if err == nil {
		err = json.Unmarshal(b, &raw)
	}
	for _, m := range raw {
		p := new(api.Port)
		if err = protojson.Unmarshal(m, p); err != nil {
			break
		}
		ports = append(ports, p)
	}
	if err != nil {
		d.log.Error("read the list of ports", "guest", e.name, "error", err)
		return nil
	}
	return ports
}

// portsBound is how long the egress process of a guest that has ended may take to close
// the guest's ports.
const portsBound = 5 * time.Second

// portsClosed returns when no port leads any more into a guest whose keeper is gone: its
// egress process sees that by itself, a moment later. Whoever is told that the guest has
// stopped may open one of them for another. What is watched of the process ends behind
// its ports.
func (e *entry) portsClosed(ctx context.Context) {
	e.mu.Lock()
	out, open := e.edge, len(e.ports) > 0
	e.mu.Unlock()
	if out == nil || !open {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, portsBound)
	defer cancel()
	st, err := out.own.Watch(ctx, connect.NewRequest(&api.WatchEgressRequest{Follow: true, Last: 1}))
	if err != nil {
		return // it is gone
	}
	defer st.Close()
	// The HTTP/2 transport looks at a request's context only while it writes.
	defer context.AfterFunc(ctx, func() { st.Close() })()
	for st.Receive() {
	}
}

// dropPorts forgets the ports of a guest that has ended.
func (d *Daemon) dropPorts(name string) { os.Remove(filepath.Join(d.guests, name, filePorts)) }
