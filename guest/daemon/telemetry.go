package daemon

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"time"

	"golang.org/x/net/http/httpproxy"

	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/doctor"
	"github.com/carrel-vm/carrel/guest/policy"
	"github.com/carrel-vm/carrel/guest/secret"
	"github.com/carrel-vm/carrel/guest/telemetry"
)

// exporter sends what the logs hold to a receiver of OpenTelemetry, if policy.yaml
// names one.
//
//	off ── an endpoint is named ──> sending ── another one, or none ──> off
//
// What waits lies in the event log and in the guests' audit logs, and nowhere
// else: there is no queue in memory to fill, and nobody waits for the receiver.
// How far it has come is on the disk after each answer, so that a daemon goes on
// where the one before it was; what was on its way when that died is sent twice.
type exporter struct {
	d     *Daemon
	tally tally

	mu    sync.Mutex
	conf  *policy.Telemetry // what is sent by; nil: off
	stop  context.CancelFunc
	ended chan struct{}   // closed when the sender that stop ends has ended
	dirty map[string]bool // guests whose audit log may have more
	wake  chan struct{}   // has an element if there is something in dirty
	held  *heldSecrets    // nil: to be read
	turns uint64          // how often secrets have changed
	told  telemetryState

	reading func() // called when values were read, before they count; nil but in tests
}

// telemetryState is what doctor and the figures say of it.
type telemetryState struct {
	sent     int64            // records that the receiver took
	dropped  map[string]int64 // that it never will, by the reason
	failures int64            // requests that were not taken
	events   uint64           // the last event that was sent
	at       time.Time        // of the last answer that was good
	trouble  string           // since then
}

// heldSecrets are what the values of secrets are needed for.
type heldSecrets struct {
	redact func(string) string
	byName map[string]*api.EdgeSecret
}

func newExporter(d *Daemon) *exporter {
	return &exporter{d: d, dirty: map[string]bool{}, wake: make(chan struct{}, 1), told: telemetryState{dropped: map[string]int64{}}}
}

// read turns it on or off as policy.yaml says. It is called when the daemon
// starts; use, whenever the file has been read for something else.
func (x *exporter) read() {
	file, err := policy.Load(filepath.Join(x.d.opts.Place.Config, policyFile))
	if err != nil {
		x.d.log.Error("nothing is sent to a receiver of telemetry, since the policy cannot be read", "error", err)
		return
	}
	x.use(file)
}

// use makes what a policy file says hold.
func (x *exporter) use(file *policy.File) {
	if x == nil || x.d.ctx == nil {
		return
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.conf.Equal(file.Telemetry) || x.d.ctx.Err() != nil {
		return
	}
	before := x.ended
	if x.stop != nil {
		x.stop()
	}
	x.conf, x.stop, x.ended, x.told.trouble = file.Telemetry, nil, nil, ""
	if x.conf == nil {
		x.d.log.Info("telemetry is off")
		return
	}
	x.d.log.Info("telemetry is on", "endpoint", x.conf.Endpoint)
	ctx, cancel := context.WithCancel(x.d.ctx)
	x.stop, x.ended = cancel, make(chan struct{})
	s := newSender(x, x.client(*x.conf, upstream(file.Upstream)), x.conf.Interval)
	ended := x.ended
	x.d.owned.Go(func() {
		defer close(ended)
		defer s.client.Close()
		if before != nil {
			<-before
		}
		s.run(ctx)
	})
}

// on says whether anything is sent.
func (x *exporter) on() bool {
	if x == nil {
		return false
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.conf != nil
}

// changed says that a guest's audit log has grown.
func (x *exporter) changed(guest string) {
	if x == nil {
		return
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.conf == nil {
		return
	}
	x.dirty[guest] = true
	x.wakeLocked()
}

func (x *exporter) wakeLocked() {
	select {
	case x.wake <- struct{}{}:
	default:
	}
}

// secretsChanged has the values read again.
func (x *exporter) secretsChanged() {
	if x == nil {
		return
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	x.turns++
	if x.held = nil; x.conf != nil {
		x.wakeLocked()
	}
}

// secrets returns what takes the values of all secrets out of a text. Without it
// nothing is sent.
func (x *exporter) secrets(ctx context.Context) (*heldSecrets, error) {
	for {
		x.mu.Lock()
		held, turn := x.held, x.turns
		x.mu.Unlock()
		if held != nil {
			return held, nil
		}
		held, err := x.readSecrets(ctx)
		x.mu.Lock()
		// A keychain may take seconds: what was read may be older than the last change.
		changed := x.turns != turn
		if err == nil && !changed {
			x.held = held
		}
		x.mu.Unlock()
		switch {
		case !changed:
			return held, err
		case ctx.Err() != nil:
			return nil, ctx.Err()
		}
	}
}

func (x *exporter) readSecrets(ctx context.Context) (*heldSecrets, error) {
	list, err := x.d.secrets.List()
	var names []string
	for _, s := range list {
		names = append(names, s.Name)
	}
	var all []*api.EdgeSecret
	if err == nil {
		all, err = x.d.secrets.Get(ctx, names...)
	}
	if x.reading != nil {
		x.reading()
	}
	if err != nil {
		return nil, fmt.Errorf("the secrets cannot be read, which must not be in what is sent: %w", err)
	}
	held := &heldSecrets{redact: secret.Redactor(all), byName: map[string]*api.EdgeSecret{}}
	for _, s := range all {
		held.byName[s.Name] = s
	}
	return held, nil
}

func (x *exporter) client(conf policy.Telemetry, up *api.EdgeUpstream) *telemetry.Client {
	proxy := (&httpproxy.Config{HTTPProxy: up.GetHttpProxy(), HTTPSProxy: up.GetHttpsProxy(), NoProxy: up.GetNoProxy()}).ProxyFunc()
	return telemetry.New(telemetry.Options{
		Endpoint: conf.Endpoint, Resource: x.resource(),
		Proxy:  func(r *http.Request) (*url.URL, error) { return proxy(r.URL) },
		Header: func(r *http.Request) error { return x.header(r, conf) },
		Hide:   hideHeaders,
	})
}

// resource is what is said once of this daemon.
func (x *exporter) resource() []telemetry.Attr {
	host, _ := os.Hostname()
	return []telemetry.Attr{
		{Key: "service.name", Value: "carreld"}, {Key: "service.version", Value: x.d.opts.Version.GetVersion()},
		{Key: "service.instance.id", Value: fmt.Sprintf("%s/%d", host, os.Getuid())},
		{Key: "host.name", Value: host}, {Key: "os.type", Value: runtime.GOOS}, {Key: "process.pid", Value: int64(os.Getpid())},
	}
}

// maxHeader bounds what a header's file holds, in bytes.
const maxHeader = 8 << 10

// header adds what the policy file wants with each request. A value is in no
// error.
func (x *exporter) header(r *http.Request, conf policy.Telemetry) error {
	for _, h := range conf.Headers {
		v := h.Value
		if h.File != "" {
			var err error
			if v, err = headerFile(h.File); err != nil {
				return fmt.Errorf("header %s: %w", h.Name, err)
			}
		}
		r.Header.Set(h.Name, v)
	}
	if conf.Secret == "" {
		return nil
	}
	held, err := x.secrets(r.Context())
	if err != nil {
		return err
	}
	s := held.byName[conf.Secret]
	if s == nil {
		return fmt.Errorf("there is no secret %s (carrel secret set %s)", conf.Secret, conf.Secret)
	}
	return secret.Authorize(r, s)
}

func headerFile(path string) (string, error) {
	fi, err := os.Stat(path)
	switch {
	case err != nil:
		return "", err
	case !fi.Mode().IsRegular() || fi.Size() > maxHeader:
		return "", fmt.Errorf("%s is not a file of at most %d bytes", path, maxHeader)
	case runtime.GOOS != "windows" && fi.Mode().Perm()&0o077 != 0:
		return "", fmt.Errorf("%s can be read by others (chmod 600 %s)", path, path)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return "", err
	}
	v := strings.TrimSpace(string(b))
	if v == "" || len(v) > maxHeader || strings.ContainsFunc(v, func(c rune) bool { return c < 0x20 || c > 0x7e }) {
		return "", errors.New(path + " does not hold one line that a header can be")
	}
	return v, nil
}

// took counts what a receiver has answered well.
func (x *exporter) took(n int64, lost map[string]int64, events uint64) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.told.sent += n
	for why, n := range lost {
		x.told.dropped[why] += n
	}
	if events > 0 {
		x.told.events = events
	}
	x.told.at, x.told.trouble = time.Now(), ""
}

// lose counts what no receiver will have.
func (x *exporter) lose(why string) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.told.dropped[why]++
}

// failed notes why nothing could be sent. Only the first of a row is logged.
func (x *exporter) failed(err error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.told.failures++; x.told.trouble == "" {
		x.d.log.Warn("telemetry cannot be sent; it waits in the logs", "error", err)
	}
	x.told.trouble = err.Error()
}

// finding is what doctor says of it.
func (x *exporter) finding() *doctor.Telemetry {
	if x == nil {
		return nil
	}
	last, _ := x.d.events.state()
	x.mu.Lock()
	defer x.mu.Unlock()
	out := &doctor.Telemetry{}
	if x.conf == nil {
		return out
	}
	out.Endpoint, out.Trouble, out.Sent = x.conf.Endpoint, x.told.trouble, x.told.sent
	out.Waiting = int64(last - min(last, x.told.events))
	for _, n := range x.told.dropped {
		out.Dropped += n
	}
	return out
}
