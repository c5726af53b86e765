package main

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/shuntio/shunt/tools/control"
	"github.com/shuntio/shunt/tools/control/api"
	"github.com/shuntio/shunt/tools/control/config"
)

func (c *command) apply() *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use: "apply -f FILE", Short: "Make a file the running configuration", Args: cobra.NoArgs,
		Long: "apply makes a file the running configuration and shows what changed. Objects that are the same before and after\n" +
			"are not touched; those that are not in the file are removed.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			want, err := c.read(file)
			if err != nil {
				return err
			}
			return c.with(cmd, func(ctx context.Context, client *api.Client) error {
				changes, err := client.Apply(ctx, want)
				return errors.Join(c.changed(changes, err), c.waiting(ctx, client, changes))
			})
		},
	}
	cmd.Flags().StringVarP(&file, "file", "f", "", "file of the configuration, YAML; - is the standard input")
	if err := cmd.MarkFlagFilename("file", "yaml", "yml"); err != nil {
		panic(err) // the flag is right above
	}
	return cmd
}

// waiting tells people of volumes that were changed and wait for their stores.
func (c *command) waiting(ctx context.Context, client *api.Client, changes []control.Change) error {
	touched := map[string]bool{}
	for _, change := range changes {
		if change.Kind == control.KindVolume && (change.Action == control.Created || change.Action == control.Replaced) {
			touched[change.Name] = true
		}
	}
	if len(touched) == 0 || c.output == "json" {
		return nil
	}
	s, err := client.Status(ctx)
	if err != nil {
		return err
	}
	t := newTable(c.out)
	for _, v := range s.Volumes {
		if v.State == control.StateWaiting && touched[v.Name] {
			t.line("volume %s waits for its store: %s", v.Name, v.Reason)
		}
	}
	return t.end()
}

// read checks the file here, where it has lines and columns.
func (c *command) read(file string) (*config.Config, error) {
	switch file {
	case "":
		return nil, usageError{errors.New("apply which file? name it with -f")}
	case "-":
		text, err := io.ReadAll(io.LimitReader(c.in, config.MaxDocument+1))
		if err != nil {
			return nil, usageError{fmt.Errorf("read the standard input: %w", err)}
		}
		return config.Parse("stdin", text)
	}
	want, err := config.Read(file)
	var invalid *config.Error
	if err != nil && !errors.As(err, &invalid) {
		return nil, usageError{err}
	}
	return want, err
}

func (c *command) delete() *cobra.Command {
	del := &cobra.Command{
		Use: "delete", Short: "Remove an object from the running configuration", Args: cobra.NoArgs,
		Long: "delete removes an object from the running configuration. The file is not changed: the next reload brings the\n" +
			"object back unless it was removed there too.",
		RunE: func(*cobra.Command, []string) error {
			return usageError{errors.New("delete what? uplink, network, port, volume or volume-group, and its name")}
		},
	}
	for _, kind := range []control.Kind{control.KindUplink, control.KindNetwork, control.KindPort, control.KindVolume, control.KindVolumeGroup} {
		del.AddCommand(&cobra.Command{
			Use: string(kind) + " NAME", Short: "Remove one " + string(kind), Args: cobra.ExactArgs(1), ValidArgsFunction: c.names(kind),
			RunE: func(cmd *cobra.Command, args []string) error {
				return c.with(cmd, func(ctx context.Context, client *api.Client) error {
					return c.changed(client.Delete(ctx, kind, args[0]))
				})
			},
		})
	}
	return del
}

// changed shows what happened, also when part of it failed.
func (c *command) changed(changes []control.Change, err error) error {
	var refused *api.Error
	if errors.As(err, &refused) && len(refused.Changes) > 0 {
		changes = refused.Changes
		err = fmt.Errorf("%d of %d objects are not as configured", actions(changes, control.Failed), len(changes))
	}
	if changes == nil {
		return err
	}
	return errors.Join(c.print(api.Changes{Changes: changes}, func(t *table) { drawChanges(t, changes) }), err)
}

func drawChanges(t *table, changes []control.Change) {
	unchanged := actions(changes, control.Unchanged)
	head := []any{"OBJECT", "NAME", "ACTION"}
	if actions(changes, control.Failed) > 0 {
		head = append(head, "ERROR")
	}
	if unchanged < len(changes) {
		t.head(head...)
	}
	for _, change := range changes {
		if row := []any{change.Kind, change.Name, change.Action, change.Error}; change.Action != control.Unchanged {
			t.row(row[:len(head)]...)
		}
	}
	t.line("%d unchanged", unchanged)
}

func actions(changes []control.Change, a control.Action) int {
	n := 0
	for _, c := range changes {
		if c.Action == a {
			n++
		}
	}
	return n
}
