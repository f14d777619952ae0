//go:build unix

package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/carrel-vm/carrel/guest/wire"
)

// copy serves c on conn, as a user of the guest.
func (a *Agent) copy(ctx context.Context, conn net.Conn, c *wire.Call, user string) {
	if err := a.startCopy(ctx, conn, c, user); err != nil {
		sendDone(conn, 0, err)
	}
}

func (a *Agent) startCopy(ctx context.Context, conn net.Conn, c *wire.Call, user string) error {
	select {
	case <-a.ready:
	default:
		return errNotReady
	}
	// A copy holds no task's place; it waits for its own.
	select {
	case a.copies <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-a.copies }()
	if a.o.beside == nil {
		return a.copyAs(ctx, conn, c, user)
	}
	// There is one user only, whom the kernel judges here as anywhere.
	if _, err := a.o.beside.account(user); err != nil {
		return err
	}
	leftOut, err := doCopy(conn, c)
	endCopy(conn, leftOut, err)
	return nil
}

// doCopy returns how many entries a look left out.
func doCopy(conn io.ReadWriter, c *wire.Call) (leftOut uint32, err error) {
	switch k := c.Kind.(type) {
	case *wire.Call_Put:
		return 0, put(conn, k.Put)
	case *wire.Call_Get:
		if err := absolute(k.Get.Path); err != nil {
			return 0, err
		}
		switch {
		case k.Get.Look:
			return lookAt(conn, k.Get)
		case k.Get.Most != 0:
			return 0, readPart(conn, k.Get)
		}
		return 0, get(conn, k.Get)
	}
	return 0, errors.New("this is no copy")
}

// endCopy says how a copy went.
func endCopy(conn io.ReadWriter, leftOut uint32, err error) {
	sendDone(conn, leftOut, err)
	// A host that is still sending must see Done before it sees the
	// connection break.
	_, _ = io.Copy(io.Discard, conn)
}

func sendDone(w io.Writer, leftOut uint32, err error) {
	d := &wire.Done{LeftOut: leftOut}
	if err != nil {
		d.Error = text(err.Error(), wire.MaxText)
		if e := unix.Errno(0); errors.As(err, &e) {
			d.Errno = uint32(e)
		}
	}
	_ = wire.Write(w, &wire.Copy{Kind: &wire.Copy_Done{Done: d}})
}

// absolute checks the path of a copy in the guest.
func absolute(path string) error {
	if !strings.HasPrefix(path, "/") || len(path) > maxName || strings.IndexByte(path, 0) >= 0 {
		return fmt.Errorf("%.200q is not an absolute path in the guest", path)
	}
	return nil
}
