package main

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/shuntio/shunt/tools/control"
	"github.com/shuntio/shunt/tools/control/api"
)

func (c *command) move() *cobra.Command {
	return &cobra.Command{
		Use: "move PORT WORKER[,WORKER ...]|auto", Short: "Give a port's queues to other workers", Args: cobra.ExactArgs(2),
		Long: "move gives a port's queues to other workers while its guest stays connected: queue pair i to the one at place i of the list, which\n" +
			"begins anew where it is too short. auto leaves the choice to the daemon. shuntctl status shows the workers.",
		ValidArgsFunction: c.moveArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			workers, err := workerList(args[1])
			if err != nil {
				return usageError{err}
			}
			return c.with(cmd, func(ctx context.Context, client *api.Client) error {
				return c.changed(client.Move(ctx, args[0], workers))
			})
		},
	}
}

func workerList(text string) (workers []int, err error) {
	if text == "auto" {
		return nil, nil
	}
	for part := range strings.SplitSeq(text, ",") {
		n, err := strconv.Atoi(part)
		if err != nil || n < 0 {
			return nil, fmt.Errorf("%q is not the number of a worker: give one or more of those that shuntctl status shows, as 0,1, or auto", part)
		}
		workers = append(workers, n)
	}
	return workers, nil
}

// moveArgs completes a port's name, then a worker's number.
func (c *command) moveArgs(cmd *cobra.Command, args []string, begun string) ([]string, cobra.ShellCompDirective) {
	if len(args) != 1 {
		return c.names(control.KindPort)(cmd, args, begun)
	}
	words := []string{"auto"}
	_ = c.with(cmd, func(ctx context.Context, client *api.Client) error { // without a daemon there are none
		s, err := client.Status(ctx)
		for _, w := range s.Workers {
			words = append(words, strconv.Itoa(w.ID))
		}
		return err
	})
	return words, cobra.ShellCompDirectiveNoFileComp
}
