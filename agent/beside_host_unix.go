//go:build unix

package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/carrel-vm/carrel/guest/wire"
)

// proxySteering is what Ready says where programs find a proxy in their
// environment.
const proxySteering = "proxy"

// besideHost speaks with the host over the boot stream, as host does in a guest
// that is a Linux of its own.
//
// fail ends the agent later, if the way out breaks.
func (a *Agent) besideHost(ctx context.Context, fail func(error)) error {
	r := wire.NewReader(a.o.Boot)
	since := int64(time.Since(began))
	hello := &wire.Hello{Version: wire.Version, Agent: version(), Kernel: kernelRelease(), UpNanos: since, InitNanos: since}
	if err := wire.Write(a.o.Boot, &wire.FromGuest{Kind: &wire.FromGuest_Hello{Hello: hello}}); err != nil {
		return fmt.Errorf("say hello to the host: %w", err)
	}
	var m wire.FromHost
	if err := r.Read(&m); err != nil {
		return fmt.Errorf("read the host's setup: %w", err)
	}
	setup := m.GetSetup()
	if setup == nil {
		return errors.New("the host's first frame is not its setup")
	}
	ready := &wire.Ready{}
	steering, err := a.besideSetUp(ctx, setup, fail)
	if ready.Steering = steering; err != nil {
		ready.Error = text(err.Error(), wire.MaxText)
	} else {
		close(a.ready)
	}
	if err := wire.Write(a.o.Boot, &wire.FromGuest{Kind: &wire.FromGuest_Ready{Ready: ready}}); err != nil {
		return fmt.Errorf("tell the host that the guest is ready: %w", err)
	}
	for {
		if err := r.Read(&m); err != nil {
			return fmt.Errorf("read from the host: %w", err)
		}
		c := m.GetControl()
		if c == nil {
			return errors.New("the host sent a frame that is out of order")
		}
		answer, last := &wire.Answer{Id: c.Id}, false
		switch k := c.Kind.(type) {
		case *wire.Control_Ping, *wire.Control_SetTime: // the clock is the host's own
		case *wire.Control_Refused:
			if err := a.refused(k.Refused.Lines); err != nil {
				answer.Error = text(err.Error(), wire.MaxText)
			}
		case *wire.Control_PowerOff:
			last = true
			a.endTasks(ctx, time.Duration(k.PowerOff.GraceNanos))
		case *wire.Control_Attach, *wire.Control_Detach, *wire.Control_Refresh:
			answer.Error = "the shares of a guest behind this wall are fixed at its start (stop it, and start it with others)"
		default:
			answer.Error = "this agent does not know what is asked"
		}
		if err := wire.Write(a.o.Boot, &wire.FromGuest{Kind: &wire.FromGuest_Answer{Answer: answer}}); err != nil {
			return fmt.Errorf("answer the host: %w", err)
		}
		if last {
			return nil
		}
	}
}

// besideSetUp does what of Setup there is to do here, and refuses what cannot
// be. The name of the machine and its clock are the host's.
func (a *Agent) besideSetUp(ctx context.Context, s *wire.Setup, fail func(error)) (steering string, err error) {
	n := int(s.MaxTasks)
	if n < 1 || n > maxCalls {
		n = maxTasks
	}
	a.slots = make(chan struct{}, n)
	if err := checkEnv(s.Env); err != nil {
		return noSteering, err
	}
	for _, m := range s.Mounts {
		switch {
		case m.Type != "none":
			return noSteering, fmt.Errorf("share %.80q is of type %.20q, and an agent beside the host's programs mounts nothing", m.Tag, m.Type)
		case m.Overlay || m.Layer != "":
			return noSteering, fmt.Errorf("share %.80q is to have a layer, and there is none behind this wall", m.Tag)
		}
	}
	b := a.o.beside
	settled, err := b.settle(s)
	if err != nil {
		return noSteering, err
	}
	// The host's own come later, and so win.
	a.env = append(append(b.kept(), settled...), s.Env...)
	steering = noSteering
	if s.Egress && b.listener != nil {
		if err := b.start(ctx, a.o.DialHost, fail); err != nil {
			return noSteering, err
		}
		steering = proxySteering
	}
	return steering, nil
}

// kept are the variables that tasks have from the agent.
func (b *beside) kept() (env []string) {
	for _, v := range b.env {
		switch name, _, _ := strings.Cut(v, "="); name {
		case "HOME", "TMPDIR", "PATH", "LANG", "USER", "LOGNAME", "SHELL":
			env = append(env, v)
		}
	}
	return append(env, "CARREL_REFUSALS="+filepath.Join(b.dir, refusalsName))
}

// systemBundles are where a system has the certificates of public authorities:
// macOS, Debian.
var systemBundles = []string{"/private/etc/ssl/cert.pem", "/etc/ssl/certs/ca-certificates.crt"}

// settle writes certificates and git's settings into the agent's folder, and
// returns the variables by which programs find them. Programs that ask the
// system about certificates are not reached: docs/seatbelt.md.
func (b *beside) settle(s *wire.Setup) (env []string, err error) {
	certs, err := certificates(s.Trust)
	if err != nil {
		return nil, err
	}
	if len(certs) > 0 {
		var all strings.Builder
		for _, c := range certs {
			all.WriteString(c.pem)
		}
		old := ""
		for _, f := range systemBundles {
			if p, err := os.ReadFile(f); err == nil {
				old = string(p)
				break
			}
		}
		trusted, bundle := filepath.Join(b.dir, trustName), filepath.Join(b.dir, bundleName)
		if err := errors.Join(place(trusted, all.String()), place(bundle, withSection(old, all.String()))); err != nil {
			return nil, fmt.Errorf("write the certificates from the host: %w", err)
		}
		env = append(env,
			"NODE_EXTRA_CA_CERTS="+trusted, "SSL_CERT_FILE="+bundle, "CURL_CA_BUNDLE="+bundle, "GIT_SSL_CAINFO="+bundle,
			"REQUESTS_CA_BUNDLE="+bundle, "PIP_CERT="+bundle, "CARGO_HTTP_CAINFO="+bundle, "DENO_CERT="+trusted)
	}
	if len(s.GitHosts) > 0 {
		rewriting, err := gitRewriting(s.GitHosts)
		if err != nil {
			return nil, err
		}
		file := filepath.Join(b.dir, gitName)
		if err := place(file, rewriting); err != nil {
			return nil, fmt.Errorf("write git's rewriting: %w", err)
		}
		// In place of the system's, which on a Mac asks the keychain, which no
		// guest reaches.
		env = append(env, "GIT_CONFIG_SYSTEM="+file)
	}
	return env, nil
}
