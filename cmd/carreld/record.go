package main

import (
	"log/slog"

	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/audit"
	"github.com/carrel-vm/carrel/guest/secret"
)

// record writes an egress process's part of the guest's audit log: every
// verdict, of many refusals the number, and each use of a secret by its name.
type record struct {
	log   *slog.Logger
	audit *audit.Log
	thin  *repeats
}

func openRecord(dir string, log *slog.Logger) (*record, error) {
	l, err := audit.Open(dir)
	if err != nil {
		return nil, err
	}
	r := &record{log: log, audit: l}
	r.thin = newRepeats(r.append)
	return r, nil
}

// hide keeps the values of secrets out of all that is recorded from now on.
func (r *record) hide(secrets []*api.EdgeSecret) error {
	e, err := secret.NewEdge(secrets)
	if err != nil {
		return err
	}
	r.audit.Redact(e.Redact)
	return nil
}

// event is called with each verdict, in order.
func (r *record) event(ev *api.EgressEvent) { r.thin.event(ev) }

// append writes one record. A log that cannot be written does not hold the guest
// up; it is said in the process's own.
func (r *record) append(kind string, fields any) {
	if err := r.audit.Append(kind, fields); err != nil {
		r.log.Error("audit", "error", err)
	}
}

func (r *record) close() {
	r.thin.close()
	if err := r.audit.Sync(); err != nil {
		r.log.Error("audit", "error", err)
	}
	r.audit.Close()
}
