package main

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"strings"

	"github.com/spf13/cobra"

	"github.com/carrel-vm/carrel/guest/client"
)

func (a *app) cpCommand() *cobra.Command {
	var o client.CopyOptions
	cmd := &cobra.Command{
		Use:   "cp SRC NAME:DST | NAME:SRC DST",
		Short: "Copy files into or out of a running guest",
		Long: `Copy a file or a folder into or out of a running guest. A DST that ends in "/"
is copied into, and so is a DST on this machine that is a folder.

What a guest sends is its own word: it is written beneath DST only, through no
link, and links that lead out of the copy are left out, with a warning.`,
		Example: `  carrel cp input.csv dev:/tmp/
  carrel cp dev:/home/user/report.html .
  carrel cp -u root config dev:/etc/tool`,
		Args: needs(arguments(2, 2)),
		RunE: func(cmd *cobra.Command, args []string) error { return a.doCp(cmd.Context(), o, args[0], args[1]) },
	}
	cmd.Flags().StringVarP(&o.User, "user", "u", "", "user who reads or writes in the guest (default 1000)")
	cmd.Flags().Int64Var(&o.MaxBytes, "max-bytes", 0, "copy at most so many bytes (default 64 GiB)")
	return cmd
}

func (a *app) doCp(ctx context.Context, o client.CopyOptions, from, to string) error {
	fromGuest, fromPath := splitGuest(from)
	toGuest, toPath := splitGuest(to)
	if (fromGuest == "") == (toGuest == "") {
		return usageError{errors.New("one of SRC and DST must be in a guest: NAME:/PATH")}
	}
	for _, p := range []string{fromPath, toPath} {
		if p == "" {
			return usageError{errors.New("a path is missing")}
		}
	}
	guest, path := fromGuest, fromPath
	if guest == "" {
		guest, path = toGuest, toPath
	}
	if !strings.HasPrefix(path, "/") {
		return usageError{fmt.Errorf("%q is not an absolute path in guest %s: write %s:/%s", path, guest, guest, path)}
	}
	if err := nameable(path); err != nil {
		return usageError{err}
	}
	o.Warn = a.warn
	c, err := a.connect(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	if fromGuest != "" {
		return c.Get(ctx, fromGuest, fromPath, to, o)
	}
	return c.Put(ctx, toGuest, from, toPath, o)
}

// splitGuest splits NAME:PATH. What cannot be a guest's name stands for a file
// of this machine; ./a:b always does.
func splitGuest(s string) (guest, path string) {
	name, path, ok := strings.Cut(s, ":")
	if !ok || client.CheckName("guest", name) != nil || runtime.GOOS == "windows" && len(name) == 1 {
		return "", s
	}
	return name, path
}
