// Command skerry is what an operator uses: it builds images, runs them in QEMU
// and talks to nodes. One file holds one verb; what the verbs do is in the
// packages below imagebuild and in qemu.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
)

// usageError is a wrong call: exit status 2.
type usageError struct{ error }

func rootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:           "skerry",
		Short:         "Build, flash, run and look after Skerry nodes",
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{err} })
	root.AddCommand(lockCommand())
	return root
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := rootCommand().ExecuteContext(ctx)
	if err == nil {
		return
	}
	fmt.Fprintln(os.Stderr, "skerry: "+err.Error())
	if errors.As(err, &usageError{}) {
		os.Exit(2)
	}
	os.Exit(1)
}
