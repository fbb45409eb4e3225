// Command skerry is the operator's command: it builds images, looks into them
// and runs them. Each verb is a file of its own; this one has the root, what verbs
// share, and the exit codes: 0, 1 when it failed, 2 when it was called wrongly.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
)

// usageError is a wrong call.
type usageError struct{ err error }

func (e usageError) Error() string { return e.err.Error() }
func (e usageError) Unwrap() error { return e.err }

// errInterrupted is the cause of an end by signal.
var errInterrupted = errors.New("interrupted")

func main() {
	ctx, cancel := context.WithCancelCause(context.Background())
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	go func() {
		<-signals
		signal.Stop(signals) // a second one ends at once
		cancel(errInterrupted)
	}()
	err := newRoot().ExecuteContext(ctx)
	var usage usageError
	switch {
	case err == nil:
	case errors.As(err, &usage):
		fmt.Fprintf(os.Stderr, "skerry: %v\n", err)
		os.Exit(2)
	default:
		fmt.Fprintf(os.Stderr, "skerry: %v\n", err)
		os.Exit(1)
	}
}

func newRoot() *cobra.Command {
	root := &cobra.Command{
		Use:           "skerry",
		Short:         "Build, flash and look after Skerry nodes",
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          noVerb,
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return usageError{fmt.Errorf("%w (%s --help says more)", err, cmd.CommandPath())}
	})
	root.CompletionOptions.DisableDefaultCmd = true
	root.AddCommand(boardsCommand(), clusterCommand(), discoverCommand(), flashCommand(), imageCommand(), lockCommand(), nodeCommand(), qemuCommand())
	return root
}

// group makes a command that only holds others.
func group(use, short string, children ...*cobra.Command) *cobra.Command {
	cmd := &cobra.Command{Use: use, Short: short, Args: noVerb, RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() }}
	cmd.AddCommand(children...)
	return cmd
}

// noVerb refuses a verb that is not there.
func noVerb(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	var names []string
	for _, c := range cmd.Commands() {
		names = append(names, c.Name())
	}
	return usageError{fmt.Errorf("unknown command %q for %s: want one of: %s", args[0], cmd.CommandPath(), strings.Join(names, ", "))}
}

// noArgs is for commands that take flags only.
var noArgs = exactArgs(0)

// exactArgs asks for so many arguments.
func exactArgs(n int) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) != n {
			return usageError{fmt.Errorf("got %d arguments, want: %s", len(args), cmd.UseLine())}
		}
		return nil
	}
}
