package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"
)

func (a *app) policyImportCommand() *cobra.Command {
	var srt string
	cmd := &cobra.Command{
		Use:   "import --srt FILE",
		Short: "Turn another sandbox's settings into a policy file",
		Long: `Turn the settings of srt (~/.srt-settings.json) into a policy file. The policy goes
to standard output; what became of each key goes to standard error: whether it means
the same here, denies more here, or has no meaning here. Wherever srt denies, the
policy denies. Nothing is written.`,
		Example: "  carrel policy import --srt ~/.srt-settings.json > policy.yaml",
		Args:    needs(arguments(0, 0)),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if srt == "" {
				return usageError{errors.New("say which file: --srt FILE")}
			}
			return a.doPolicyImport(cmd.Context(), srt)
		},
	}
	cmd.Flags().StringVar(&srt, "srt", "", "srt's settings, a JSON `file`")
	cmd.Flags().Bool("json", false, "print a JSON object with the policy and the keys")
	return cmd
}

func (a *app) doPolicyImport(ctx context.Context, file string) error {
	content, err := readPolicy(file)
	if err != nil {
		return err
	}
	c, err := a.connect(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	out, err := c.ImportPolicy(ctx, "srt", content)
	if err != nil {
		return err
	}
	if a.json {
		return a.printJSON(out)
	}
	for _, k := range out.Keys {
		a.note(fmt.Sprintf("%s: %s: %s", k.Key, k.Mapping, k.Text))
	}
	_, err = a.out.Write(out.Policy)
	return err
}
