package agent

import (
	"fmt"
	"net"

	"github.com/mdlayher/vsock"
	"golang.org/x/sys/unix"

	"github.com/carrel-vm/carrel/agent/names"
	"github.com/carrel-vm/carrel/agent/steer"
	"github.com/carrel-vm/carrel/guest/wire"
)

// refusalsFile is where a guest's programs can read why something was refused,
// also where the protocol has no words for it.
const refusalsFile = carrelDir + "/refusals.log"

// hostOnly passes on connections that come from the host.
type hostOnly struct{ *vsock.Listener }

// Accept returns the host's next connection. Where a kernel lets a guest dial
// itself, such connections are closed.
func (l hostOnly) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if a, ok := c.RemoteAddr().(*vsock.Addr); ok && a.ContextID == vsock.Host {
			return c, nil
		}
		_ = c.Close()
	}
}

// ownNetwork makes o an agent's that has a network namespace and a root file
// system to itself: it steers every name and connection to the host, and tells
// the guest's programs of it. It needs CAP_NET_ADMIN in that namespace, and a
// writable /run/carrel. The steering begins at once, so that the kernel's waits
// for it are over when the host's Setup comes; it reads no file.
func (o *Options) ownNetwork() {
	o.network(func() (*steer.Steering, error) { return steer.Start(steer.Options{Own: names.Own}) })
}

// network is ownNetwork with a way to steer.
func (o *Options) network(start func() (*steer.Steering, error)) {
	var s *steer.Steering
	var err error
	begun := make(chan struct{})
	go func() {
		defer close(begun)
		s, err = start()
	}()
	o.Network = func() (*steer.Steering, error) {
		<-begun
		return s, err
	}
	o.Settle = func(s *wire.Setup) ([]string, error) {
		env, err := settleNames("", s.Trust, s.GitHosts)
		if err != nil {
			return nil, err
		}
		return append(env, gitTemplate()...), nil
	}
	o.GitHosts = func(hosts []string) error { return rewriteGit("", hosts) }
	o.Refusals = refusalsFile
}

// loopback brings the guest's only network device up.
func loopback() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("bring loopback up: %w", err)
	}
	defer unix.Close(fd)
	req, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	if err := unix.IoctlIfreq(fd, unix.SIOCGIFFLAGS, req); err != nil {
		return fmt.Errorf("bring loopback up: %w", err)
	}
	req.SetUint16(req.Uint16() | unix.IFF_UP)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, req); err != nil {
		return fmt.Errorf("bring loopback up: %w", err)
	}
	return nil
}
