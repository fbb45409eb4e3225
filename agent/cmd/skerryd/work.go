package main

import (
	"context"
	"fmt"
	"os"
	"strings"
	"time"

	"skerry.internal/skerry/agent/notify"
	"skerry.internal/skerry/agent/unit"
)

// once makes a unit of work that is done when it returns.
func once(name string, work func(context.Context) error) unit.Unit {
	return unit.Unit{Name: name, Run: func(ctx context.Context, ready func()) error {
		if err := work(ctx); err != nil {
			return err
		}
		ready()
		<-ctx.Done()
		return nil
	}}
}

// retry makes work that failed be done again, after pauses that grow to a
// minute: the API must stay up while containerd or a card is in trouble. What is
// wrong is said to the supervisor too, who shows it on the console.
func retry(supervisor notify.Sender, what string, work func(context.Context) error) func(context.Context) error {
	return func(ctx context.Context) error {
		for pause := time.Second; ; pause = min(2*pause, time.Minute) {
			err := work(ctx)
			if err == nil || ctx.Err() != nil {
				return err
			}
			said := fmt.Sprintf("%s: %v; again in %s", what, err, pause)
			fmt.Fprintln(os.Stderr, "skerryd: "+said)
			supervisor.Send("STATUS=error: " + strings.ReplaceAll(said, "\n", " "))
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-time.After(pause):
			}
		}
	}
}

// outside is for units that wait for something outside this process, however
// long it takes: while one isn't ready it asks the supervisor for more time.
func outside(supervisor notify.Sender, run func(context.Context, func()) error) func(context.Context, func()) error {
	const more = 3 * time.Minute
	return func(ctx context.Context, ready func()) error {
		waiting, stop := context.WithCancel(ctx)
		defer stop()
		go func() {
			t := time.NewTicker(more / 3)
			defer t.Stop()
			for {
				supervisor.Send(fmt.Sprintf("EXTEND_TIMEOUT_USEC=%d", more.Microseconds()))
				select {
				case <-waiting.Done():
					return
				case <-t.C:
				}
			}
		}()
		return run(ctx, func() { stop(); ready() })
	}
}
