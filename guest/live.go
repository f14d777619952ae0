package guest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"connectrpc.com/connect"

	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/policy"
	"github.com/carrel-vm/carrel/guest/share/control"
	"github.com/carrel-vm/carrel/guest/wire"
	"github.com/carrel-vm/carrel/hypervisor"
)

// A share that is added to a running guest. On Unix the daemon starts its process,
// since a keeper with a running guest can start none and opens no folder, and hands
// its control socket over (live_unix.go). On Windows the keeper starts it, as it
// did those before (live_asked.go). What then has the guest mount it is AttachShare.

// Live is the process of a share that is for a guest which runs.
type Live interface {
	// Hand gives it to the guest's keeper, for AttachShare with its tag.
	Hand() error
	// Close lets go of it: without Hand it ends.
	Close() error
}

// ShareSocketPath is where a guest's keeper takes shares.
func ShareSocketPath(run, name string) string {
	return shareSocketPath(SocketPath(run, name))
}

// shareSocketPath is that of the keeper that listens on socket.
func shareSocketPath(socket string) string {
	return filepath.Join(filepath.Dir(socket), "s"+strings.TrimPrefix(filepath.Base(socket), "k"))
}

// RemoveSockets removes what a keeper that listened on socket left, as it was
// killed.
func RemoveSockets(socket string) {
	os.Remove(socket)
	os.Remove(shareSocketPath(socket))
}

// handed is what is said with a control socket, and the answer to it.
type handed struct {
	Tag   string `json:"tag,omitempty"`
	Error string `json:"error,omitempty"`
}

// handTimeout bounds a hand-over.
const handTimeout = 15 * time.Second

// shelf holds the control sockets that were handed over and not attached yet.
type shelf struct {
	ln   net.Listener
	stop context.CancelFunc
	done sync.WaitGroup

	mu    sync.Mutex
	kept  map[string]*control.Conn
	ended bool
}

// maxShelf is how many may wait.
const maxShelf = 64

// errFull says that as many wait.
var errFull = errors.New("too many shares wait to be attached")

// openShelf listens on path. start starts a share's process, where the keeper
// itself does that.
func openShelf(path string, start func(context.Context, ShareSpec) (*control.Conn, error)) (*shelf, error) {
	ln, err := listenShelf(path)
	if err != nil {
		return nil, err
	}
	ctx, stop := context.WithCancel(context.Background())
	s := &shelf{ln: ln, stop: stop, kept: map[string]*control.Conn{}}
	s.done.Go(func() { s.accept(ctx, start) })
	return s, nil
}

func goodTag(s string) bool {
	for i := range len(s) {
		if c := s[i]; (c < 'a' || c > 'z') && (c < '0' || c > '9') {
			return false
		}
	}
	return s != "" && len(s) <= 32
}

func (s *shelf) put(tag string, c *control.Conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended || len(s.kept) >= maxShelf && s.kept[tag] == nil {
		return false
	}
	if old := s.kept[tag]; old != nil {
		old.Close()
	}
	s.kept[tag] = c
	return true
}

func (s *shelf) get(tag string) *control.Conn {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.kept[tag]
	delete(s.kept, tag)
	return c
}

func (s *shelf) close() {
	s.ln.Close()
	s.stop()
	s.done.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ended = true
	for _, c := range s.kept {
		c.Close()
	}
	clear(s.kept)
}

// add attaches a share whose server was handed over.
func (s *shares) add(ctx context.Context, g *Guest, tag string, want *api.Share, conn *control.Conn) error {
	c := control.NewClient(conn, s.changed)
	sh := &sharing{share: want, server: c, carrier: carriedByStream, mount: &wire.Mount{
		Tag: tag, Type: "fuse", Path: want.GuestPath, ReadOnly: !writes(want.Mode), Overlay: want.Mode == api.ShareMode_SHARE_MODE_REVIEW,
	}}
	if sh.mount.Overlay {
		sh.mount.Layer = policy.Layer(want)
	}
	var err error
	s.mu.Lock()
	for _, other := range s.list {
		if err == nil && (other.mount.GetTag() == tag || other.share.GuestPath == want.GuestPath) {
			err = fmt.Errorf("the guest has a share at %s already", other.share.GuestPath)
		}
	}
	if err == nil && len(s.list) >= maxShares {
		err = fmt.Errorf("the guest has %d shares, which is the limit", maxShares)
	}
	if err == nil {
		s.list = append(s.list, sh)
	}
	s.mu.Unlock()
	if err != nil {
		endServer(c)
		return err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, attachTimeout, errors.New("the guest's agent does not answer"))
	defer cancel()
	if err := g.boot.ask(ctx, &wire.Control{Kind: &wire.Control_Attach{Attach: sh.mount}}); err != nil {
		s.drop(sh)
		endServer(c)
		return fmt.Errorf("mount it in the guest: %w", err)
	}
	s.changed()
	return nil
}

// maxShares is how many shares a guest may have at once, those that come later
// included: its agent's limit.
const maxShares = 64

// remove takes a share away, which is named by its tag or by where the guest has
// it. When it returns without an error nothing of the
// guest's reaches the folder any more, whatever the guest has done.
func (s *shares) remove(ctx context.Context, g *Guest, tag string) error {
	s.mu.Lock()
	var sh *sharing
	for _, x := range s.list {
		if (x.mount.GetTag() == tag || x.share.GuestPath == tag) && !x.lost {
			sh = x
		}
	}
	if sh == nil || sh.server == nil {
		s.mu.Unlock()
		if sh != nil {
			return errors.New("this boundary carries the folder itself, and cannot take it away from a running guest (stop the guest)")
		}
		return errors.New("the guest has no such share")
	}
	sh.lost = true // no further stream
	s.mu.Unlock()
	asked, cancel := context.WithTimeoutCause(ctx, detachTimeout, errors.New("the guest's agent does not answer"))
	// A guest that refuses keeps a mount that answers with errors.
	if err := g.boot.ask(asked, &wire.Control{Kind: &wire.Control_Detach{Detach: &wire.Detach{Path: sh.mount.GetPath()}}}); err != nil {
		s.log.Info("the guest does not unmount a share", "share", sh.share.Path, "error", err)
	}
	cancel()
	shut, cancel := context.WithTimeoutCause(context.Background(), detachTimeout, errors.New("the host's file system does not answer it"))
	defer cancel()
	if err := sh.server.Shut(shut); err != nil {
		s.mu.Lock()
		sh.lost = false // so that it can be tried again
		s.mu.Unlock()
		return err
	}
	if sh.carrier == carriedByStream {
		endServer(sh.server)
	} // a device's goes on, and answers with errors: a guest without it would hang
	s.drop(sh)
	s.changed()
	return nil
}

func (s *shares) drop(sh *sharing) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, x := range s.list {
		if x == sh {
			s.list = append(s.list[:i:i], s.list[i+1:]...)
			if sh.carrier == carriedByDevice {
				s.past = append(s.past, sh.server)
			}
			return
		}
	}
}

// refresh shows the guest what the host has changed under its reviews: of the
// share at path, of the host or of the guest, or of all.
func (s *shares) refresh(ctx context.Context, g *Guest, path string) error {
	found := false
	for _, sh := range s.all() {
		if !reviewed(&sh) || path != "" && path != sh.share.Path && path != sh.share.GuestPath {
			continue
		}
		found = true
		ctx, cancel := context.WithTimeoutCause(ctx, attachTimeout, errors.New("the guest's agent does not answer"))
		err := g.boot.ask(ctx, &wire.Control{Kind: &wire.Control_Refresh{Refresh: &wire.Refresh{Path: sh.mount.GetPath()}}})
		cancel()
		if err != nil {
			return fmt.Errorf("refresh %s: %w", sh.share.Path, err)
		}
	}
	if !found && path != "" {
		return fmt.Errorf("the guest has no review of %s", path)
	}
	return nil
}

// ending says whether a guest has ended, or an ephemeral one is about to: its
// task is over, and what that has changed came over before its caller knew.
func (k *Keeper) ending(g *Guest) bool {
	select {
	case <-k.finished:
		return true
	case <-g.Gone():
		return true
	default:
		return false
	}
}

// with runs f for a running guest's shares.
func (k *Keeper) with(ctx context.Context, code, what string, f func(*Guest, *shares) error) error {
	k.mu.Lock()
	g, s, name := k.g, k.shares, k.info.Name
	k.mu.Unlock()
	gone := api.NewError(connect.CodeFailedPrecondition, "not_running", "guest "+name+" is not running", "carrel start "+name)
	if g == nil || s == nil {
		return gone
	}
	end, err := g.rest.use(ctx)
	if errors.Is(err, errLeaving) {
		return gone
	} else if err != nil {
		return err
	}
	defer end()
	if err := f(g, s); err != nil {
		if errors.Is(err, hypervisor.ErrGone) || k.ending(g) {
			return gone
		}
		return api.NewError(connect.CodeInternal, code, what+": "+err.Error(), "")
	}
	return nil
}

// ImportReview implements the keeper's service.
func (k *Keeper) ImportReview(ctx context.Context, r *connect.Request[api.ImportReviewRequest]) (*connect.Response[api.ImportReviewResponse], error) {
	err := k.with(ctx, "import", "the guest's changes could not be read", func(g *Guest, s *shares) error {
		if !s.hasReviews() {
			return nil
		}
		return s.imports.all(ctx, g, "", r.Msg.Ignored)
	})
	return connect.NewResponse(&api.ImportReviewResponse{}), err
}

// DropReview implements the keeper's service.
func (k *Keeper) DropReview(ctx context.Context, r *connect.Request[api.DropReviewRequest]) (*connect.Response[api.DropReviewResponse], error) {
	err := k.with(ctx, "drop", "the guest could not be made to forget its changes", func(g *Guest, s *shares) error {
		return s.forget(ctx, g, r.Msg.Share, r.Msg.Names)
	})
	return connect.NewResponse(&api.DropReviewResponse{}), err
}

// AttachShare implements the keeper's service.
func (k *Keeper) AttachShare(ctx context.Context, r *connect.Request[api.AttachShareRequest]) (*connect.Response[api.AttachShareResponse], error) {
	err := k.with(ctx, "attach", "the folder could not be shared", func(g *Guest, s *shares) error {
		c := k.shelf.get(r.Msg.Tag)
		if c == nil {
			return errors.New("no server was handed over for it")
		}
		if r.Msg.Share == nil {
			c.Close()
			return errors.New("the share is missing")
		}
		err := s.add(ctx, g, r.Msg.Tag, r.Msg.Share, c)
		if err == nil {
			k.say("share.attached", map[string]any{"path": r.Msg.Share.Path, "guest_path": r.Msg.Share.GuestPath, "mode": r.Msg.Share.Mode.String()})
		}
		return err
	})
	return connect.NewResponse(&api.AttachShareResponse{}), err
}

// DetachShare implements the keeper's service.
func (k *Keeper) DetachShare(ctx context.Context, r *connect.Request[api.DetachShareRequest]) (*connect.Response[api.DetachShareResponse], error) {
	err := k.with(ctx, "detach", "the share could not be taken away", func(g *Guest, s *shares) error {
		err := s.remove(ctx, g, r.Msg.Tag)
		if err == nil {
			k.say("share.detached", map[string]any{"tag": r.Msg.Tag})
		}
		return err
	})
	return connect.NewResponse(&api.DetachShareResponse{}), err
}

// RefreshShare implements the keeper's service.
func (k *Keeper) RefreshShare(ctx context.Context, r *connect.Request[api.RefreshShareRequest]) (*connect.Response[api.RefreshShareResponse], error) {
	err := k.with(ctx, "refresh", "the shares could not be refreshed", func(g *Guest, s *shares) error {
		return s.refresh(ctx, g, r.Msg.Path)
	})
	return connect.NewResponse(&api.RefreshShareResponse{}), err
}
