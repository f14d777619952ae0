package guest

import (
	"context"
	"fmt"
	"net"

	"github.com/carrel-vm/carrel/guest/place"
	"github.com/carrel-vm/carrel/guest/share/control"
)

// ServeLive has a guest's keeper start the process of a share, by its own command
// and with its own log.
func ServeLive(ctx context.Context, run, name string, spec ShareSpec, _ ShareStart) (Live, error) {
	c, err := place.Dial(ctx, ShareSocketPath(run, name))
	if err != nil {
		return nil, fmt.Errorf("ask the guest's keeper for a share: %w", err)
	}
	return askShare(ctx, c, spec)
}

func listenShelf(path string) (net.Listener, error) { return ListenPrivate(path) }

func (s *shelf) accept(ctx context.Context, start func(context.Context, ShareSpec) (*control.Conn, error)) {
	s.acceptAsked(ctx, start)
}
