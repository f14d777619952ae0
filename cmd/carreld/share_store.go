package main

import (
	"context"
	"errors"
	"io"
	"sync"

	"github.com/carrel-vm/carrel/guest/review"
	"github.com/carrel-vm/carrel/guest/share"
	"github.com/carrel-vm/carrel/guest/share/control"
	"github.com/carrel-vm/carrel/guest/share/rules"
)

// shareStore is what is kept of one share: of a review what was served and what
// the guest has changed, of a live share what it changes as it was before.
type shareStore struct {
	root *share.Root
	set  *rules.Set
	mu   sync.Mutex // one import at a time
	base *review.Base
	all  *review.Store
	undo *review.Undo
}

// openShareStore opens what the share's mode keeps, while this process may still
// open everything.
func openShareStore(spec control.Spec, root *share.Root, set *rules.Set) (*shareStore, error) {
	s := &shareStore{root: root, set: set}
	if spec.Store == "" {
		return s, nil
	}
	var err error
	switch set.Mode() {
	case rules.Review:
		if s.base, err = review.OpenBase(spec.Store); err == nil {
			s.all, err = review.OpenToImport(spec.Store)
		}
	case rules.ReadWrite, rules.NoDelete:
		s.undo, err = review.OpenUndo(spec.Store)
	}
	if err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

// options adds to the server's what is to be kept.
func (s *shareStore) options(o share.Options) share.Options {
	if s.base != nil {
		o.Served, o.Opened = s.base.Served, s.base.Opened
	}
	if s.undo != nil {
		o.Before = s.undo
	}
	return o
}

// session begins the set of pre-images of a task.
func (s *shareStore) session(task string) error {
	if s.undo == nil {
		return nil
	}
	return s.undo.Session(task)
}

// review keeps what the guest says that it has changed.
func (s *shareStore) review(ctx context.Context, c io.ReadWriter, task string, ignored bool) error {
	if s.all == nil {
		return errors.New("this share is not in review")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	_, err := s.all.Import(ctx, c, review.ImportOptions{Root: s.root, Rules: s.set, Base: s.base, Task: task, Ignored: ignored})
	return err
}

func (s *shareStore) close() {
	if s.base != nil {
		s.base.Close()
	}
	if s.all != nil {
		s.all.Close()
	}
	if s.undo != nil {
		s.undo.Close()
	}
}
