package main

import (
	"context"
	"errors"
	"os"
	"os/signal"

	"google.golang.org/protobuf/encoding/protojson"

	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/daemon"
	"github.com/carrel-vm/carrel/guest/doctor"
	"github.com/carrel-vm/carrel/hypervisor"
)

// runDoctor prints what a guest needs of this host, one JSON object per line,
// with no daemon: the command line asks for it where none can be started.
func runDoctor() error {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	o, err := daemonOptions()
	if err != nil {
		return err
	}
	daemon.Doctor(ctx, o, func(f *api.Finding) {
		if err != nil {
			return
		}
		var b []byte
		if b, err = protojson.Marshal(f); err == nil {
			_, err = os.Stdout.Write(append(b, '\n'))
		}
	})
	return err
}

// trouble takes the cure out of an error.
func trouble(err error) doctor.Trouble {
	var he *hypervisor.Error
	switch {
	case err == nil:
		return doctor.Trouble{}
	case errors.As(err, &he):
		return doctor.Trouble{Cause: he.Op + ": " + he.Err.Error(), Cure: he.Cure}
	}
	return doctor.Trouble{Cause: err.Error()}
}

func each(fs []*api.Finding, found func(*api.Finding)) {
	for _, f := range fs {
		found(f)
	}
}
