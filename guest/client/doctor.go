package client

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"

	"google.golang.org/protobuf/encoding/protojson"

	"github.com/carrel-vm/carrel/guest/api"
)

// Bounds of what a daemon that only looks may say: a host has some thirty
// findings, of some hundred bytes each.
const (
	maxFindings    = 1 << 10
	maxFindingLine = 64 << 10
)

// DoctorAlone is Client.Doctor where no daemon can be had: it has the program
// itself look at this host, which serves nobody and knows no guests.
func DoctorAlone(ctx context.Context, o Options, f func(*api.Finding)) error {
	const op = "look for what is missing, without a daemon"
	path := o.Daemon
	p, err := placeOf(o)
	if err != nil {
		return &Error{Code: "bad_home", Message: err.Error()}
	}
	if path == "" {
		if path, err = FindDaemon(); err != nil {
			return err
		}
	}
	cmd := exec.CommandContext(ctx, path, "doctor")
	cmd.Env = append(os.Environ(), p.Env()...)
	var said strings.Builder
	cmd.Stderr = &bounded{w: &said, left: 1 << 10}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return fmt.Errorf("%s: %w", op, err)
	}
	if err := cmd.Start(); err != nil {
		return &Error{Code: "daemon_start", Message: op, Cause: err.Error(), Cure: "install carreld again, from the release that carrel is of"}
	}
	lines := bufio.NewScanner(out)
	lines.Buffer(nil, maxFindingLine)
	n := 0
	for ; n < maxFindings && lines.Scan(); n++ {
		found := new(api.Finding)
		if err = protojson.Unmarshal(lines.Bytes(), found); err != nil {
			break
		}
		f(found)
	}
	err = errors.Join(err, lines.Err())
	io.Copy(io.Discard, out) // it may end only when all of it was taken
	if werr := cmd.Wait(); werr != nil {
		err = errors.Join(err, fmt.Errorf("%w: %s", werr, strings.TrimSpace(said.String())))
	}
	if err != nil {
		return fmt.Errorf("%s: %w (%s doctor)", op, err, path)
	}
	return nil
}

// bounded keeps the first bytes and takes the rest.
type bounded struct {
	w    io.Writer
	left int
}

func (b *bounded) Write(p []byte) (int, error) {
	keep := p[:min(len(p), b.left)]
	b.left -= len(keep)
	b.w.Write(keep)
	return len(p), nil
}
