package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/client"
)

type runFlags struct {
	specFlags
	taskFlags
	keep    bool
	timings bool
}

func (a *app) runCommand() *cobra.Command {
	var f runFlags
	cmd := &cobra.Command{
		Use:   "run [flags] [--] COMMAND [ARG...]",
		Short: "Run one command in a fresh guest",
		Long: `Run one command in a fresh guest. The exit status is the command's; 124 after
--timeout, 125 if Carrel fails, 126 or 127 if the command cannot be run or
found, 128+n if signal n ended it.

Without -v the current folder is shared for review: the command may change
everything, and nothing on this machine changes until you say so. carrel diff
shows what it did, carrel apply brings it into the folder, carrel undo takes that
back. Files that hold credentials, such as .env, are not there for the guest.
Without --name or --keep the guest is removed when the command has ended, or,
if it leaves changes, when these are applied or discarded.

With --image and no COMMAND the image's own is run: its ENTRYPOINT and CMD. A
COMMAND is run as it is, with the image's variables and user; it starts in the
shared folder, or if nothing is shared in the image's WORKDIR.

The guest reaches nothing but what --allow, --preset, --secret and policy.yaml
name. What it is not let out to is said, with the command that would allow it.`,
		Example: `  carrel run -- make test
  carrel run -v .:rw --preset packages -- npm install
  carrel run --allow example.org -- curl https://example.org
  carrel run --no-share -i -- python3 - < script.py
  carrel run -v ~/src/lib:/lib-under-test:ro -v .:rw -- ./build.sh
  carrel run --image python:3.13 -- python -m unittest
  carrel run -it -- bash`,
		Args: needs(func(cmd *cobra.Command, args []string) error {
			if f.image != "" && f.image != "default" && f.image != "host" {
				return nil // it may have a command of its own
			}
			return arguments(1, many)(cmd, args)
		}),
		RunE: func(cmd *cobra.Command, args []string) error {
			if a.json && !f.timings {
				return usageError{errors.New("--json says how --timings prints; a task's output is its own")}
			}
			if f.timings {
				a.timings = new(timings)
			}
			return a.doRun(cmd.Context(), &f, args)
		},
	}
	fs := cmd.Flags()
	fs.SetInterspersed(false) // what follows COMMAND is its own
	f.specFlags.add(fs)
	f.taskFlags.add(fs)
	fs.StringVar(&f.name, "name", "", "the guest's `name`; it is kept")
	fs.BoolVar(&f.keep, "keep", false, "keep the guest, running, when the command has ended")
	fs.BoolVarP(&a.quiet, "quiet", "q", false, "say nothing but errors")
	fs.BoolVar(&f.timings, "timings", false, "print, at the end, what of the run took how long")
	fs.Bool("json", false, "print the timings as a line of JSON, on standard error")
	return cmd
}

func (a *app) doRun(ctx context.Context, f *runFlags, args []string) error {
	spec, usual, err := f.spec()
	if err != nil {
		return err
	}
	spec.Ephemeral = f.name == "" && !f.keep
	t, err := a.task(&f.taskFlags, args)
	if err != nil {
		return err
	}
	a.timings.add("command line understood", began)
	connected := a.timings.begin("daemon found")
	c, err := a.connect(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	connected()
	if err := a.requests(ctx, c, spec.Shares); err != nil {
		return err
	}
	started := a.timings.begin("guest started")
	g, err := a.startGuest(ctx, c, spec, true, usual)
	if err != nil {
		return err
	}
	started()
	t.Guest = g.Name
	if t.Dir == "" && !t.ImageCommand { // the image's own command is at home in its own folder
		t.Dir = a.folderIn(g)
	}
	left := "the task goes on in guest " + g.Name + "; `carrel stop " + g.Name + "` ends it"
	if spec.Ephemeral {
		left = "guest " + g.Name + " and its task are ended soon, since nobody waits for them"
	}
	err = a.do(ctx, c, *t, left)
	if exit := (*client.ExitError)(nil); err != nil && !errors.As(err, &exit) && spec.Ephemeral && !errors.Is(err, client.ErrTruncated) && !errors.Is(err, client.ErrInputLost) {
		a.discard(c, g.Name)
	}
	if err == nil || errors.As(err, new(*client.ExitError)) {
		summed := a.timings.begin("changes summed up")
		a.sayChanges(ctx, c, g)
		summed()
	}
	if a.timings != nil {
		a.timings.add("run", began)
		a.sayTimings(ctx, c, g.Name, spec.Ephemeral)
	}
	if !spec.Ephemeral {
		a.note(fmt.Sprintf("guest %s goes on running: `carrel shell %s` enters it, `carrel rm -f %s` removes it", g.Name, g.Name, g.Name))
	}
	return err
}

// removeTime bounds the removal of a guest whose task could not be started.
const removeTime = 15 * time.Second

// discard removes a guest that is of no use, whatever ended the command.
func (a *app) discard(c *client.Client, name string) {
	ctx, cancel := context.WithTimeout(context.Background(), removeTime)
	defer cancel()
	if err := c.RemoveGuest(ctx, name, true); err != nil && client.CodeOf(err) != "not_found" {
		a.note("guest " + name + " was not removed: " + err.Error())
	}
}

// startGuest starts a guest and shows how far that is.
func (a *app) startGuest(ctx context.Context, c *client.Client, spec *api.GuestSpec, onlyNew, usual bool) (*api.Guest, error) {
	p := a.progress()
	defer p.done()
	current := usual
	p.wait("starting a guest")
	// The first event comes when the request was granted. Before it, it would
	// be wrong to say that something is shared.
	granted := func() {
		if usual {
			p.note("sharing " + spec.Shares[0].Path + " for review; what the guest changes there waits for your yes (-v .:rw lets it change the folder, --no-share shares nothing)")
		}
		usual = false
	}
	g, err := c.StartGuest(ctx, spec, client.GuestOptions{OnlyNew: onlyNew, OnEvent: func(ev *api.StartGuestEvent) {
		granted()
		switch k := ev.Kind.(type) {
		case *api.StartGuestEvent_Progress:
			p.update(k.Progress)
		case *api.StartGuestEvent_Notice:
			p.note(k.Notice)
		}
	}})
	var own *client.Error
	if current && errors.As(err, &own) && own.Code == "share_refused" {
		own.Cure = "cd into the project that the command needs, choose a folder with -v, or share nothing with --no-share"
	}
	return g, err
}

// folderIn returns where a command should run that was not told: in the current
// folder, if the guest has it, else in its first share.
func (a *app) folderIn(g *api.Guest) string {
	cwd, err := currentFolder()
	if err != nil {
		cwd = ""
	}
	return guestFolder(g.GetSpec().GetShares(), cwd)
}
