package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"skerry.internal/skerry/agent/api"
	"skerry.internal/skerry/agent/provision"
	"skerry.internal/skerry/boards"
	"skerry.internal/skerry/imagebuild/cluster"
	"skerry.internal/skerry/imagebuild/image"
	"skerry.internal/skerry/qemu"
)

const (
	apiPort       = 6443
	kubeconfig    = "kubeconfig" // in the machine's folder
	powerdownTime = 60 * time.Second
)

func qemuCommand() *cobra.Command {
	return group("qemu", "Run images in QEMU, cut their power, look at their consoles",
		qemuUpCommand(), qemuStartCommand(), qemuDownCommand(), qemuCutCommand(), qemuLinkCommand(), qemuConsoleCommand(), qemuStatsCommand())
}

// upOptions are the flags of qemu up.
type upOptions struct {
	name, image, board, machine, config, cluster string
	memory, smp, disk                            int
	detach, watchdog, asJSON                     bool
	timeout                                      time.Duration
}

func qemuUpCommand() *cobra.Command {
	var o upOptions
	cmd := &cobra.Command{
		Use:   "up --name NAME --image FILE",
		Short: "Boot an image in QEMU until its node is ready",
		Long: `Boot an image in QEMU until its node is ready. The image is verified first and never written
to: the machine's disk is a throw-away overlay in build/qemu/NAME. With --cluster the
provisioning bundle of that cluster is put on FIRMWARE of the overlay, and build/qemu/NAME/kubeconfig
leads to the node's API. Without --detach the machine ends with this command.`,
		Example: "  skerry qemu up --name one --image build/rpi4/skerry-rpi4.img --cluster home --detach\n  skerry qemu up --name pi --image build/rpi3/skerry-rpi3.img --board-machine raspi3b",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if o.name == "" || o.image == "" {
				return usageError{errors.New("--name or --image is missing: want, for example, --name one --image build/rpi4/skerry-rpi4.img")}
			}
			return qemuUp(cmd.Context(), o)
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.name, "name", "", "the machine's name, its folder below build/qemu")
	f.StringVar(&o.image, "image", "", "the image file, as skerry image build makes it")
	f.StringVar(&o.board, "board", "", "the board the image is for (default: from its file name or --board-machine)")
	f.StringVar(&o.machine, "board-machine", "", "the machine QEMU plays: "+strings.Join(machineNames(), ", ")+" (default virt)")
	f.StringVar(&o.config, "config", "", "skerry.yaml to put on FIRMWARE")
	f.StringVar(&o.cluster, "cluster", "", "the cluster whose bundle to put on FIRMWARE, as skerry cluster create made it")
	f.IntVar(&o.memory, "memory", 0, "memory in MiB (default: the machine's)")
	f.IntVar(&o.disk, "disk", 0, "size of the card in GiB (default 8; 1 where QEMU plays an SD card, which is slow to format)")
	f.IntVar(&o.smp, "smp", 0, "processors (default: the machine's)")
	f.BoolVar(&o.detach, "detach", false, "leave the machine running")
	f.BoolVar(&o.watchdog, "watchdog", false, "plug in a hardware watchdog")
	f.BoolVar(&o.asJSON, "json", false, "print JSON")
	f.DurationVar(&o.timeout, "timeout", 15*time.Minute, "how long to wait until the node is ready")
	return cmd
}

func machineNames() []string {
	names := map[string]bool{}
	for _, name := range boards.Names() {
		if b, err := boards.ByName(name); err == nil {
			for _, m := range b.QEMU {
				names[m.Name] = true
			}
		}
	}
	return slices.Sorted(maps.Keys(names))
}

// pickBoard finds the board: as told, else the one whose image this is by
// its name, else the first that has the machine.
func (o upOptions) pickBoard() (*boards.Board, *boards.QEMUMachine, error) {
	names := boards.Names()
	if o.board != "" {
		names = []string{o.board}
	} else if i := slices.IndexFunc(names, func(n string) bool { return strings.HasPrefix(filepath.Base(o.image), "skerry-"+n+".") }); i >= 0 {
		names[0], names[i] = names[i], names[0]
	}
	var first error
	for _, name := range names {
		b, err := boards.ByName(name)
		if err != nil {
			return nil, nil, usageError{err}
		}
		m, err := b.Machine(o.machine)
		if err == nil {
			return b, m, nil
		}
		first = errors.Join(first, err)
	}
	return nil, nil, usageError{fmt.Errorf("unknown --board-machine %q: want one of: %s", o.machine, strings.Join(machineNames(), ", "))}
}

var machineName = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?$`)

// machineDir is where a machine lives. Names have no underscore, so none is taken for a U-Boot's folder beside them.
func machineDir(name string) (string, error) {
	if !machineName.MatchString(name) {
		return "", usageError{fmt.Errorf("machine name %q: want at most 32 lower-case letters, digits and hyphens, like one", name)}
	}
	build, err := qemu.BuildDir()
	return filepath.Join(build, "qemu", name), err
}

// verifyImage refuses what would not boot, before anything is made.
func verifyImage(ctx context.Context, file string) error {
	if strings.HasSuffix(file, ".zst") {
		return fmt.Errorf("%s is compressed: name the .img beside it, or unpack it with: zstd -d %s", file, file)
	}
	r, err := image.Inspect(ctx, file)
	if err != nil {
		return err
	}
	if damage := r.Damage(); len(damage) > 0 {
		return fmt.Errorf("%s is damaged: %s; build it again", file, strings.Join(damage, "; "))
	}
	return nil
}

// prepareFirmware is what this command adds to FIRMWARE of the overlay.
func (o upOptions) prepareFirmware(files map[string][]byte) error {
	if err := addConfig(files, o.config, nil, os.Stderr); err != nil {
		return err
	}
	if o.cluster == "" {
		return nil
	}
	c, err := openCluster(o.cluster)
	if err != nil {
		return err
	}
	bundle, err := c.Bundle(time.Now())
	if err != nil {
		return err
	}
	files[provision.FileName] = bundle
	return nil
}

func openCluster(name string) (*cluster.Cluster, error) {
	home, err := cluster.Home()
	if err != nil {
		return nil, err
	}
	return cluster.Open(home, name)
}

// waitReady waits for what the node says last on its console, and writes the kubeconfig.
func waitReady(ctx context.Context, vm *qemu.VM, r *qemu.Record) error {
	// A node without a bundle comes up unclaimed: it has booted, and waits for a cluster.
	mark := `skerry: (boot complete|unit skerryd \| .*belongs to no cluster)`
	if r.Cluster != "" {
		c, err := openCluster(r.Cluster)
		if err != nil {
			return err
		}
		text, err := c.Kubeconfig(fmt.Sprintf("https://127.0.0.1:%d", vm.Port(apiPort)), time.Now())
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(vm.Dir(), kubeconfig), text, 0o600); err != nil {
			return err
		}
		mark = `skerry: node ready`
	}
	if _, err := vm.Expect(ctx, mark); err != nil {
		return err
	}
	r.ReadyIn = time.Since(r.Started).Seconds()
	return nil
}

func qemuUp(ctx context.Context, o upOptions) error {
	dir, err := machineDir(o.name)
	if err != nil {
		return err
	}
	b, m, err := o.pickBoard()
	if err != nil {
		return err
	}
	if o.watchdog && m.Watchdog == "" {
		return usageError{fmt.Errorf("--watchdog: machine %s has none that can be used", m.Name)}
	}
	if qemu.Exists(dir) {
		return fmt.Errorf("machine %q exists: end it with skerry qemu down %s, or power it on with skerry qemu start %s", o.name, o.name, o.name)
	}
	if err := verifyImage(ctx, o.image); err != nil {
		return err
	}
	if o.disk == 0 {
		if o.disk = 8; m.Disk == "sd" {
			o.disk = 1
		}
	}
	imageFile, err := filepath.Abs(o.image)
	if err != nil {
		return err
	}
	cfg := qemu.Config{
		Dir: dir, Machine: m, Image: o.image, Memory: o.memory, SMP: o.smp, DiskSize: int64(o.disk) << 30,
		Forwards: map[int]int{apiPort: 0, api.Port: 0}, Detach: o.detach, Watchdog: o.watchdog,
	}
	if o.config != "" || o.cluster != "" {
		cfg.Firmware = o.prepareFirmware
	}
	vm, err := qemu.New(ctx, cfg)
	if err != nil {
		return errors.Join(err, os.RemoveAll(dir))
	}
	memory, smp := vm.Size()
	r := qemu.Record{Board: b.Name, Machine: m.Name, Image: imageFile, Cluster: o.cluster, Memory: memory, SMP: smp, Watchdog: o.watchdog}
	if err := powerOn(ctx, vm, &r, o.timeout); err != nil {
		// The console's log stays, for whoever wants to know why; the name is free again.
		return errors.Join(err, os.Remove(filepath.Join(dir, qemu.RecordFile)))
	}
	if err := report(o.name, vm, r, o.asJSON); err != nil || o.detach {
		return err
	}
	defer os.RemoveAll(dir)
	fmt.Fprintln(os.Stderr, "skerry: Ctrl-C ends the machine")
	if err := vm.Wait(ctx); ctx.Err() == nil {
		return err
	}
	vm.Cut()
	return nil
}

// powerOn starts a machine, records it and waits for its node. A machine that doesn't get ready is ended.
func powerOn(ctx context.Context, vm *qemu.VM, r *qemu.Record, timeout time.Duration) error {
	r.Started, r.ReadyIn = time.Now(), 0
	if err := vm.Start(ctx); err != nil {
		return err
	}
	r.PID, r.Ports = vm.PID(), vm.Ports()
	err := r.Save(vm.Dir())
	if err == nil {
		waiting, cancel := context.WithTimeout(ctx, timeout)
		defer cancel()
		stop := progress(vm)
		err = waitReady(waiting, vm, r)
		stop()
	}
	if err == nil {
		err = r.Save(vm.Dir())
	}
	if err != nil {
		vm.Cut()
	}
	return err
}

// progress shows on a terminal the last step the node printed. It returns what ends it.
func progress(vm *qemu.VM) (stop func()) {
	if info, err := os.Stderr.Stat(); err != nil || info.Mode()&os.ModeCharDevice == 0 {
		return func() {}
	}
	done, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		begin, tick := time.Now(), time.NewTicker(500*time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-done:
				fmt.Fprint(os.Stderr, "\r\x1b[K")
				return
			case <-tick.C:
				step := "starting"
				if lines := lastStep.FindAllStringSubmatch(vm.Console(), -1); len(lines) > 0 {
					step = lines[len(lines)-1][1]
				}
				fmt.Fprintf(os.Stderr, "\r\x1b[K%4.0f s  %.70s", time.Since(begin).Seconds(), step)
			}
		}
	}()
	return func() { close(done); <-ended }
}

var lastStep = regexp.MustCompile(`skerry: ([^\r\n]+)`)

// qemuReport is what up, start and stats print.
type qemuReport struct {
	Name       string      `json:"name"`
	Running    bool        `json:"running"`
	Dir        string      `json:"dir"`
	Kubeconfig string      `json:"kubeconfig,omitempty"`
	Record     qemu.Record `json:"machine"`
	Stats      *qemu.Stats `json:"stats,omitempty"`
}

func report(name string, vm *qemu.VM, r qemu.Record, asJSON bool) error {
	p := qemuReport{Name: name, Running: true, Dir: vm.Dir(), Record: r}
	if r.Cluster != "" {
		p.Kubeconfig = filepath.Join(vm.Dir(), kubeconfig)
	}
	if asJSON {
		return printJSON(p)
	}
	fmt.Printf("%s is ready after %.0f s: %s on %s, %d MiB, %d processors\n", name, r.ReadyIn, r.Board, r.Machine, r.Memory, r.SMP)
	if p.Kubeconfig != "" {
		fmt.Printf("now type: kubectl --kubeconfig %s get nodes\n", p.Kubeconfig)
	}
	fmt.Printf("its console: skerry qemu console %s\n", name)
	return nil
}

func printJSON(v any) error {
	e := json.NewEncoder(os.Stdout)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

// forMachines is a verb that does something to each machine named.
func forMachines(verb, short, long string, do func(ctx context.Context, name, dir string) error) *cobra.Command {
	return &cobra.Command{
		Use:     verb + " NAME...",
		Short:   short,
		Long:    long,
		Example: "  skerry qemu " + verb + " one",
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return usageError{fmt.Errorf("got no name, want: %s", cmd.UseLine())}
			}
			for _, name := range args {
				dir, err := machineDir(name)
				if err != nil {
					return err
				}
				if !qemu.Exists(dir) {
					return fmt.Errorf("there is no machine %q: make one with skerry qemu up --name %s", name, name)
				}
				if err := do(cmd.Context(), name, dir); err != nil {
					return err
				}
			}
			return nil
		},
	}
}

func qemuStartCommand() *cobra.Command {
	var asJSON bool
	var timeout time.Duration
	cmd := forMachines("start", "Power a machine on again", "Power a machine on again, with the disk it had, and wait until its node is ready.",
		func(ctx context.Context, name, dir string) error {
			vm, r, err := qemu.Reopen(ctx, dir)
			if err != nil {
				return err
			}
			if err := powerOn(ctx, vm, &r, timeout); err != nil {
				return err
			}
			return report(name, vm, r, asJSON)
		})
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	cmd.Flags().DurationVar(&timeout, "timeout", 15*time.Minute, "how long to wait until the node is ready")
	return cmd
}

func qemuDownCommand() *cobra.Command {
	return forMachines("down", "End a machine and remove it", "Press the power button, wait until the machine is off, and remove its folder with the overlay.\nA machine that doesn't obey within a minute, or can't, loses its power.",
		func(ctx context.Context, name, dir string) error {
			vm, err := qemu.Attach(ctx, dir)
			if err == nil {
				waiting, cancel := context.WithTimeout(ctx, powerdownTime)
				if vm.Powerdown(waiting) != nil && ctx.Err() == nil {
					vm.Cut()
				}
				cancel()
			} else if !errors.Is(err, qemu.ErrOff) {
				return err
			}
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			return os.RemoveAll(dir)
		})
}

func qemuCutCommand() *cobra.Command {
	return forMachines("cut", "Cut a machine's power", "Cut a machine's power. Its disk stays as it is; skerry qemu start powers it on again.",
		func(ctx context.Context, name, dir string) error {
			vm, err := qemu.Attach(ctx, dir)
			if err != nil {
				return err
			}
			vm.Cut()
			return nil
		})
}

func qemuLinkCommand() *cobra.Command {
	var plug, unplug bool
	cmd := forMachines("link", "Plug a machine's network cable in, or pull it out", "Plug a machine's network cable in (--plug), or pull it out (--unplug). The forwarded ports lead nowhere meanwhile.",
		func(ctx context.Context, name, dir string) error {
			if plug == unplug {
				return usageError{errors.New("want either --plug or --unplug")}
			}
			vm, err := qemu.Attach(ctx, dir)
			if err != nil {
				return err
			}
			defer vm.Disconnect()
			return vm.Link(ctx, plug)
		})
	cmd.Example = "  skerry qemu link one --unplug"
	cmd.Flags().BoolVar(&plug, "plug", false, "plug the cable in")
	cmd.Flags().BoolVar(&unplug, "unplug", false, "pull the cable out")
	return cmd
}

func qemuConsoleCommand() *cobra.Command {
	var follow bool
	cmd := forMachines("console", "Show a machine's console", "Show what a machine has printed on its console. There is no shell in the image: nobody answers there.",
		func(ctx context.Context, name, dir string) error {
			var vm *qemu.VM
			if follow {
				var err error
				if vm, err = qemu.Attach(ctx, dir); err != nil && !errors.Is(err, qemu.ErrOff) {
					return err
				}
			}
			f, err := os.Open(filepath.Join(dir, qemu.ConsoleFile))
			if err != nil {
				return fmt.Errorf("show console of %q: %w", name, err)
			}
			defer f.Close()
			if _, err := io.Copy(os.Stdout, f); err != nil || vm == nil {
				return err
			}
			for {
				// The log grows with what is printed; a line on the console is the event.
				_, ended := vm.Expect(ctx, `\n`)
				if _, err := io.Copy(os.Stdout, f); err != nil {
					return err
				}
				if ctx.Err() != nil || vm.PID() == 0 {
					return nil
				}
				if ended != nil && !errors.Is(ended, context.DeadlineExceeded) {
					return ended
				}
			}
		})
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "go on until Ctrl-C or the machine's end")
	return cmd
}

func qemuStatsCommand() *cobra.Command {
	var asJSON bool
	cmd := forMachines("stats", "Print what a machine wrote and uses", "Print the bytes a machine wrote to its disk since it was powered on, the memory QEMU uses for it, and the seconds until its node was ready.",
		func(ctx context.Context, name, dir string) error {
			r, err := qemu.Load(dir)
			if err != nil {
				return err
			}
			p := qemuReport{Name: name, Running: r.PID != 0, Dir: dir, Record: r}
			if p.Running {
				vm, err := qemu.Attach(ctx, dir)
				if err != nil {
					return err
				}
				s, err := vm.Stats(ctx)
				if err != nil {
					return err
				}
				p.Stats = &s
			}
			if asJSON {
				return printJSON(p)
			}
			if !p.Running {
				fmt.Printf("%s is off\n", name)
				return nil
			}
			fmt.Printf("%s: written %d bytes, read %d bytes, %d flushes, QEMU uses %d MiB, ready after %.0f s\n",
				name, p.Stats.Written, p.Stats.Read, p.Stats.Flushes, p.Stats.Resident>>20, r.ReadyIn)
			return nil
		})
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}
