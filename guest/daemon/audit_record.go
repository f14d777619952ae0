package daemon

import (
	"github.com/carrel-vm/carrel/guest/audit"
)

// record adds to a guest's audit log what was done with the guest through the
// API. A log that cannot be written is said and holds nothing up: what is
// recorded has happened.
func (d *Daemon) record(e *entry, kind string, fields any) {
	l, err := audit.Open(d.auditDir(e.name))
	if err == nil {
		err = l.Append(kind, fields)
		if cerr := l.Close(); err == nil {
			err = cerr
		}
	}
	d.telemetry.changed(e.name)
	if err != nil {
		d.log.Error("audit", "guest", e.name, "record", kind, "error", err)
	}
}
