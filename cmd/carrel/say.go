package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/carrel-vm/carrel/guest/client"
)

// note says one line to the person, not with -q. What comes from elsewhere is
// made safe here, so that no caller can forget it.
func (a *app) note(line string) {
	if !a.quiet {
		a.warn(line)
	}
}

// warn says one line also with -q.
func (a *app) warn(line string) { io.WriteString(a.err, message(line, width(a.err))) }

// message is a line of ours as it is shown, broken between words where it would
// be longer than width. A cure is not broken: it may be there to be copied.
func message(line string, width int) string {
	const who = "carrel: "
	return who + strings.Join(fold(safe(line), max(width-len(who), 0)), "\n"+strings.Repeat(" ", len(who))) + "\n"
}

// explain says why the command failed, where the failure does not speak for
// itself: a task's exit status does.
func (a *app) explain(cmd *cobra.Command, err error) {
	var (
		exit   *client.ExitError
		usage  usageError
		signal signalError
		own    *client.Error
	)
	switch {
	case err == nil, errors.Is(err, errNo):
	case errors.As(err, &exit):
		if why := endingWord(exit); why != "" {
			a.warn(why)
		}
	case errors.As(err, &signal):
		a.warn(signal.Error())
	case a.json:
		a.explainJSON(err)
	case errors.As(err, &usage):
		a.warn(err.Error())
		if cmd != nil {
			a.warn("see `" + cmd.CommandPath() + " --help`")
		}
	case errors.As(err, &own):
		// What wraps it is worth reading, but for the cure, which gets a line.
		text := strings.TrimSuffix(err.Error(), " ("+own.Cure+")")
		a.warn(text)
		if own.Cure != "" {
			fmt.Fprintln(a.err, "  to mend it: "+safe(own.Cure))
		}
	default:
		a.warn(err.Error())
	}
}

// endingWord says what a task's exit status leaves open, or nothing.
func endingWord(e *client.ExitError) string {
	what := ""
	switch {
	case e.Interrupted:
		what = "the task was interrupted"
	case e.OOM:
		what = "the task was killed: out of memory"
	case e.TimedOut && e.Cause == "":
		what = "the task was ended after its time limit"
	}
	if what != "" && e.Cause != "" {
		what += ": "
	}
	return what + e.Cause
}

// explainJSON writes an error for a program.
func (a *app) explainJSON(err error) {
	out := struct {
		Code    string `json:"code"`
		Message string `json:"message"`
		Cause   string `json:"cause"`
		Cure    string `json:"cure"`
	}{Code: "failed", Message: err.Error()}
	var own *client.Error
	if errors.As(err, &own) {
		out.Code, out.Message, out.Cause, out.Cure = own.Code, own.Message, own.Cause, own.Cure
	} else if errors.As(err, new(usageError)) {
		out.Code = "usage"
	}
	b, _ := json.Marshal(out)
	fmt.Fprintln(a.err, string(b))
}

// jsonLine is the one form in which messages are printed: protojson varies its
// white space on purpose, so that is taken out.
func jsonLine(m proto.Message) (string, error) {
	b, err := protojson.MarshalOptions{}.Marshal(m)
	if err != nil {
		return "", err
	}
	var out bytes.Buffer
	if err := json.Compact(&out, b); err != nil {
		return "", err
	}
	return asciiControls(out.String()), nil
}

// asciiControls escapes what JSON allows in a string, but a terminal or a
// reader's eye may take for something else: C1 controls and bidi marks.
func asciiControls(s string) string {
	var b strings.Builder
	for _, r := range s {
		if r >= 0x7f && dangerous(r) {
			if r > 0xffff {
				r1, r2 := (r-0x10000)>>10+0xd800, (r-0x10000)&0x3ff+0xdc00
				fmt.Fprintf(&b, `\u%04x\u%04x`, r1, r2)
			} else {
				fmt.Fprintf(&b, `\u%04x`, r)
			}
			continue
		}
		b.WriteRune(r)
	}
	return b.String()
}

// printJSON prints a message as one line.
func (a *app) printJSON(m proto.Message) error {
	s, err := jsonLine(m)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(a.out, s)
	return err
}

// printArray prints messages as one JSON array, one element per line.
func printArray[M proto.Message](a *app, ms []M) error {
	var lines []string
	for _, m := range ms {
		s, err := jsonLine(m)
		if err != nil {
			return err
		}
		lines = append(lines, s)
	}
	_, err := fmt.Fprintln(a.out, "["+strings.Join(lines, ",\n ")+"]")
	return err
}
