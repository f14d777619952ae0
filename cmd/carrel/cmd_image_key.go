package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/client"
)

func (a *app) imageTrustCommand() *cobra.Command {
	var name string
	var images []string
	cmd := &cobra.Command{
		Use:   "trust KEYFILE --for NAME",
		Short: "Take bundles of an image that a key has signed",
		Long: `Take from now on bundles that a key has signed, of the images that --for names. The
file is the public key, in PEM, as carrel image key new, openssl and cosign write
it. Whoever has the private key decides what guests of these images start from. For a
key that is trusted already, --for says anew what it may sign.`,
		Example: "  carrel image trust release.key.pub --name releases --for default\n  carrel image trust team.pub --for 'team-*'",
		Args: needs(func(cmd *cobra.Command, args []string) error {
			if err := arguments(1, 1)(cmd, args); err != nil || len(images) > 0 {
				return err
			}
			return errors.New("say which images it may sign: --for NAME, --for 'BEGINNING*', or --for '*' for any")
		}),
		RunE: func(cmd *cobra.Command, args []string) error {
			k, err := a.atPath(cmd.Context(), args[0], func(ctx context.Context, c *client.Client, path string) (*api.ImageKey, error) {
				return c.TrustKey(ctx, path, name, images)
			})
			if err != nil {
				return err
			}
			a.note(fmt.Sprintf("key %s (%s) is trusted for %s: bundles of that name that it has signed are taken; `carrel image key rm %s` ends that", k.Name, k.Id, keyImages(k), k.Name))
			return nil
		},
	}
	cmd.Flags().StringVar(&name, "name", "", "what to call the `key` (default: as its file)")
	cmd.Flags().StringSliceVar(&images, "for", nil, "the `images` that it may sign: names, beginnings of names with * after them, or * for any")
	return cmd
}

// atPath has the daemon do something with the key in a file of the caller's.
func (a *app) atPath(ctx context.Context, file string, do func(context.Context, *client.Client, string) (*api.ImageKey, error)) (*api.ImageKey, error) {
	path, err := filepath.Abs(file)
	if err != nil {
		return nil, err
	}
	c, err := a.connect(ctx)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	return do(ctx, c, path)
}

// keyImages says what a key may sign.
func keyImages(k *api.ImageKey) string {
	switch {
	case len(k.Images) == 0:
		return "none"
	case len(k.Images) == 1 && k.Images[0] == "*":
		return "any image"
	}
	return strings.Join(k.Images, ", ")
}

func (a *app) imageKeyCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "key",
		Short: "Make keys to sign bundles with, and list and forget trusted ones",
		Args:  needs(arguments(0, 0)),
		RunE: func(*cobra.Command, []string) error {
			return usageError{errors.New("say what to do with keys: new, ls or rm")}
		},
	}
	create := &cobra.Command{
		Use:     "new FILE",
		Short:   "Make a pair of keys to sign bundles with",
		Long:    "Make a pair of ed25519 keys: the private one in FILE, readable by you alone, and the\npublic one in FILE.pub, for those who are to trust it. It has no passphrase.",
		Example: "  carrel image key new release.key",
		Args:    needs(arguments(1, 1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			k, err := a.atPath(cmd.Context(), args[0], func(ctx context.Context, c *client.Client, path string) (*api.ImageKey, error) {
				return c.CreateKey(ctx, path)
			})
			if err != nil {
				return err
			}
			a.note(fmt.Sprintf("key %s is in %s; give %s.pub to those who are to trust it (carrel image trust)", k.Id, k.Path, k.Path))
			return nil
		},
	}
	ls := &cobra.Command{
		Use: "ls", Aliases: []string{"list"}, Short: "List the keys whose bundles are taken", Example: "  carrel image key ls",
		Args: needs(arguments(0, 0)),
		RunE: func(cmd *cobra.Command, _ []string) error { return a.doKeyLs(cmd.Context()) },
	}
	ls.Flags().Bool("json", false, "print a JSON array")
	rm := &cobra.Command{
		Use: "rm NAME...", Short: "Take no more what keys have signed", Example: "  carrel image key rm releases",
		Long: "Take no more what keys have signed. Images that they have signed no longer start.",
		Args: needs(arguments(1, many)),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.each(cmd.Context(), args, func(ctx context.Context, c *client.Client, name string) error { return c.ForgetKey(ctx, name) })
		},
	}
	cmd.AddCommand(create, ls, rm)
	return cmd
}

func (a *app) doKeyLs(ctx context.Context) error {
	c, err := a.connect(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	keys, err := c.Keys(ctx)
	if err != nil {
		return err
	}
	if a.json {
		return printArray(a, keys)
	}
	t := tabwriter.NewWriter(a.table(), 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "NAME\tID\tIMAGES\tFILE")
	for _, k := range keys {
		file := k.Path
		if file == "" {
			file = "(of this program)"
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\n", safe(k.Name), safe(k.Id), safe(keyImages(k)), safe(file))
	}
	return t.Flush()
}
