package daemon

import (
	"errors"

	"github.com/carrel-vm/carrel/guest/daemon/store"
)

// openIndex opens the index, or refuses the start with what would mend it. A
// full disk alone refuses nothing: guests can still be stopped and removed.
func (d *Daemon) openIndex() error {
	s, err := store.Open(d.opts.Place.State)
	switch {
	case errors.Is(err, store.ErrNoRoom):
		d.log.Error("there is no index, since the disk is full", "error", err)
		return nil
	case err != nil:
		return err
	}
	if s.Rebuilt != "" {
		d.log.Warn("the index is a new one", "why", s.Rebuilt)
	}
	d.index = s
	return nil
}
