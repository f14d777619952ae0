package daemon

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"connectrpc.com/connect"

	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/doctor"
	"github.com/carrel-vm/carrel/guest/place"
	"github.com/carrel-vm/carrel/guest/policy"
	"github.com/carrel-vm/carrel/guest/secret"
	"github.com/carrel-vm/carrel/images"
)

// Doctor implements SystemService.
func (s *systemService) Doctor(ctx context.Context, _ *connect.Request[api.DoctorRequest], st *connect.ServerStream[api.Finding]) error {
	var sent error
	s.d.doctor(ctx, func(f *api.Finding) {
		if sent == nil {
			sent = st.Send(f)
		}
	})
	return sent
}

// Doctor looks at what a guest needs of this host where no daemon can be asked:
// it takes no lock and knows of no guest.
func Doctor(ctx context.Context, o Options, found func(*api.Finding)) {
	d := &Daemon{opts: o, log: slog.New(slog.DiscardHandler), guests: filepath.Join(o.Place.State, "guests")}
	d.doctor(ctx, found)
}

func (d *Daemon) doctor(ctx context.Context, found func(*api.Finding)) {
	d.opts.Doctor(ctx, found)
	for _, f := range d.facts(ctx).Findings() {
		found(f)
	}
}

// keychainNames are what people know the keychain of a system as.
var keychainNames = map[string]string{"linux": "the Secret Service", "darwin": "the Keychain", "windows": "the Credential Manager"}

// keychainTime bounds the question whether there is a keychain, which asks no
// person.
const keychainTime = 30 * time.Second

// facts are what doctor wants to know on every host.
func (d *Daemon) facts(ctx context.Context) doctor.Common {
	c := doctor.Common{Agent: d.opts.Agent, Guests: -1, Keychain: doctor.Keychain{System: keychainNames[runtime.GOOS], Kind: os.Getenv("CARREL_SECRET_STORE")}}
	rules := d.rulesNow()
	for _, dir := range []string{d.guests, d.opts.Place.Cache} {
		free, floor, err := place.Room(nearest(dir), floorOf(rules))
		disk := doctor.Disk{Dir: dir, Free: free, Floor: floor}
		if err != nil && !errors.Is(err, place.ErrNoRoom) {
			disk.Trouble = err.Error()
		}
		c.Disks = append(c.Disks, disk)
	}
	c.Image = doctor.Image{Name: policy.DefaultImage, Elsewhere: runtime.GOOS != "linux"}
	if img, err := d.opts.Images.Get(ctx, policy.DefaultImage); err != nil {
		c.Image.Missing, c.Image.Damaged, c.Image.Trouble = errors.Is(err, images.ErrNotFound), errors.Is(err, images.ErrDamaged), err.Error()
	} else if err := d.opts.Images.Fits(img); err != nil {
		c.Image.Trouble = err.Error()
	} else {
		c.Image.Kernel = img.Manifest.KernelVersion
	}
	if _, err := os.Stat(c.Agent); err != nil {
		c.AgentTrouble = err.Error()
	}
	kctx, cancel := context.WithTimeout(ctx, keychainTime)
	answers, err := secret.Answers(kctx)
	cancel()
	if c.Keychain.Answers = answers && err == nil; err != nil {
		c.Keychain.Trouble = err.Error()
	}
	if d.table == nil {
		return c
	}
	c.Telemetry = d.telemetry.finding()
	es := d.entries()
	c.Guests = len(es)
	for _, e := range es {
		if info, _, _ := e.get(); info.State == api.GuestState_GUEST_STATE_DAMAGED {
			c.Damaged = append(c.Damaged, doctor.Damaged{Name: e.name, Cause: info.Cause})
		}
	}
	return c
}

// nearest is dir, or the folder above it that is there already.
func nearest(dir string) string {
	for {
		up := filepath.Dir(dir)
		if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) || up == dir {
			return dir
		}
		dir = up
	}
}
