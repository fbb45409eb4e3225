package e2e

import (
	"cmp"
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"skerry.internal/skerry/boards"
	"skerry.internal/skerry/qemu"
)

// The figures of docs/measurements.md. They are benchmarks, so that they run only
// when they are asked for: make measure.

// ops starts the pod through which the node itself is looked at, and waits for it.
func (n *node) ops() {
	n.t.Helper()
	pod, _, _ := strings.Cut(n.workload(), "\n---\n")
	if out, err := n.try(pod, "apply", "-f", "-"); err != nil {
		n.t.Fatalf("apply: %v\n%s", err, out)
	}
	n.k("wait", "--for=condition=Ready", "pod/ops", "--timeout=180s")
}

// must runs a line on the node.
func (n *node) must(line string) string {
	n.t.Helper()
	out, err := n.on(line)
	if err != nil {
		n.t.Fatalf("on the node: %s: %v\n%s", line, err, out)
	}
	return out
}

// BenchmarkIdle reports, on each architecture, the times of the boot, memory after ten idle minutes,
// and what is written to the card in the fifteen minutes after that.
func BenchmarkIdle(b *testing.B) {
	for _, x := range []target{arm64, armv7} {
		board, _ := x.find(b)
		b.Run(board.Arch.Name, func(b *testing.B) { benchmarkIdle(b, x) })
	}
}

func benchmarkIdle(b *testing.B, x target) {
	if b.N > 1 {
		b.Fatal("run it with -benchtime=1x")
	}
	trace := filepath.Join(b.TempDir(), "writes")
	n := startNodeOf(b, x, func(c *qemu.Config) { c.Extra = []string{"-trace", "virtio_blk_handle_write", "-D", trace} })
	for _, mark := range []string{"mount kernel file systems done", "kube-apiserver ready", "node ready"} {
		m := regexp.MustCompile(`\[ *([0-9.]+)\] skerry: ` + mark).FindStringSubmatch(n.vm.Console())
		if m == nil {
			b.Fatalf("no %q on the console", mark)
		}
		b.Logf("%s s after the kernel's start: %s", m[1], mark)
	}
	n.ops()
	<-time.After(10 * time.Minute) // what idle means here, not a wait for something
	for _, program := range []string{"init", "containerd", "containerd-shim-runc-v2", "skerryd"} {
		pids := strings.Fields(n.must("busybox pidof " + program))
		if program == "init" {
			pids = []string{"1"}
		}
		for _, pid := range pids {
			rollup := n.must("busybox cat /proc/" + pid + "/smaps_rollup")
			b.Logf("%s (%s): anonymous %s kB, PSS %s kB, RSS %s kB", program, pid, field(rollup, "Anonymous"), field(rollup, "Pss"), field(rollup, "Rss"))
		}
	}
	b.Log("MemAvailable: ", field(n.must("busybox cat /proc/meminfo"), "MemAvailable"), " kB of ", field(n.must("busybox cat /proc/meminfo"), "MemTotal"))
	written := func() int64 {
		n.must("busybox sync")
		s, err := n.vm.Stats(b.Context())
		if err != nil {
			b.Fatal(err)
		}
		return s.Written
	}
	before, mark := written(), size(b, trace)
	<-time.After(15 * time.Minute)
	bytes, end := written()-before, size(b, trace)
	b.ReportMetric(float64(bytes), "B/15min")
	b.Logf("written in 15 idle minutes: %d bytes", bytes)
	n.vm.Cut()
	for _, w := range n.writers(trace, mark, end) {
		b.Logf("%9d bytes in %4d writes: %s", w.bytes, w.count, w.file)
	}
}

func size(b *testing.B, file string) int64 {
	st, err := os.Stat(file)
	if err != nil {
		b.Fatal(err)
	}
	return st.Size()
}

type writer struct {
	file         string
	bytes, count int64
}

// writers says which files the writes between two positions of QEMU's trace
// went to: debugfs finds the file of each block of STATE. What belongs to no file is
// ext4's own metadata, or a file that is gone.
func (n *node) writers(trace string, from, to int64) []writer {
	n.t.Helper()
	data, err := os.ReadFile(trace)
	if err != nil {
		n.t.Fatal(err)
	}
	const blockSize = 4096
	blocks := map[int64]int64{} // of STATE → times written
	sum := map[string]*writer{}
	add := func(file string, count, bytes int64) {
		if sum[file] == nil {
			sum[file] = &writer{file: file}
		}
		sum[file].count += count
		sum[file].bytes += bytes
	}
	for _, m := range regexp.MustCompile(`sector (\d+) nsectors (\d+)`).FindAllSubmatch(data[from:to], -1) {
		sector, err1 := strconv.ParseInt(string(m[1]), 10, 64)
		count, err2 := strconv.ParseInt(string(m[2]), 10, 64)
		if err := errors.Join(err1, err2); err != nil {
			n.t.Fatal(err)
		}
		if sector*512 < boards.StateStart {
			add("outside of STATE", 1, count*512)
			continue
		}
		for at := sector*512 - boards.StateStart; at < (sector+count)*512-boards.StateStart; at += blockSize {
			blocks[at/blockSize]++
		}
	}
	state := n.copyState(n.t.TempDir())
	var list strings.Builder
	for block := range blocks {
		fmt.Fprintf(&list, " %d", block)
	}
	inodes, owner := map[string]bool{}, map[int64]string{}
	for _, line := range strings.Split(n.debugfs(state, "icheck"+list.String()), "\n") {
		if f := strings.Fields(line); len(f) == 2 {
			if block, err := strconv.ParseInt(f[0], 10, 64); err == nil {
				owner[block], inodes[f[1]] = f[1], true
			}
		}
	}
	names := map[string]string{"8": "ext4's journal"}
	for _, line := range strings.Split(n.debugfs(state, "ncheck "+strings.Join(slices.Collect(maps.Keys(inodes)), " ")), "\n") {
		if inode, path, ok := strings.Cut(line, "\t"); ok {
			names[inode] = path
		}
	}
	for block, times := range blocks {
		name := "ext4's metadata, or a file that is gone"
		if inode := owner[block]; names[inode] != "" {
			name = names[inode]
		}
		add(name, times, times*blockSize)
	}
	var all []writer
	for _, w := range sum {
		all = append(all, *w)
	}
	slices.SortFunc(all, func(a, b writer) int { return cmp.Compare(b.bytes, a.bytes) })
	return all
}

func field(text, name string) string {
	m := regexp.MustCompile(`(?m)^` + name + `:\s+(\d+)`).FindStringSubmatch(text)
	if m == nil {
		return "?"
	}
	return m[1]
}

// BenchmarkRuntimes starts the same container with crun and with runc on the
// node, in turn, and reports seconds and the runtimes' peak memory.
func BenchmarkRuntimes(b *testing.B) {
	if b.N > 1 {
		b.Fatal("run it with -benchtime=1x")
	}
	dir := b.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "go.mod"), []byte("module measure\n\ngo 1.26\n\ntool github.com/opencontainers/runc\n\nrequire github.com/opencontainers/runc v1.5.2\n"), 0o600); err != nil {
		b.Fatal(err)
	}
	// Without seccomp, whose library would have to be cross-compiled; the
	// container below has no profile, so neither runtime does that work.
	for _, args := range [][]string{{"mod", "tidy"}, {"build", "-ldflags=-s -w", "-o", "runc", "github.com/opencontainers/runc"}} {
		cmd := exec.Command("go", args...)
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), "GOFLAGS=-mod=mod -trimpath", "GOARCH=arm64", "CGO_ENABLED=1", "CC=aarch64-linux-gnu-gcc")
		if out, err := cmd.CombinedOutput(); err != nil {
			b.Fatalf("go %v: %v\n%s", args, err, out)
		}
	}
	n := startNode(b)
	n.ops()
	runc, err := os.ReadFile(filepath.Join(dir, "runc"))
	if err != nil {
		b.Fatal(err)
	}
	// The pod has no tar for kubectl cp. The shell must stay beside cat: see
	// docs/known-faults.md, "exec -i".
	if out, err := n.try(string(runc), "exec", "-i", "ops", "--", "/bin/busybox", "sh", "-c", "busybox cat >/runc; true"); err != nil {
		b.Fatalf("copy runc: %v\n%s", err, out)
	}
	if got, want := n.must("busybox sha256sum /runc"), fmt.Sprintf("%x", sha256.Sum256(runc)); !strings.HasPrefix(got, want) {
		b.Fatalf("runc has sha256 %s on the node; want %s", got, want)
	}
	n.must("busybox cp /runc /proc/1/root/var/runc && busybox chmod 755 /proc/1/root/var/runc && busybox mkdir -p /proc/1/root/var/b/rootfs/bin && busybox cp /bin/busybox /proc/1/root/var/b/rootfs/bin/ && busybox cp /bin/busybox /proc/1/root/var/busybox")
	spec := n.must(`busybox nsenter -t 1 -m /var/busybox sh -ec '
cd /var/b && /usr/bin/crun spec
/var/busybox sed -i -e "s/\"terminal\": true/\"terminal\": false/" -e "s,\"sh\"$,\"/bin/busybox\"\,\"true\"," config.json
/var/busybox cat config.json'`)
	if !strings.Contains(spec, `"/bin/busybox"`) {
		b.Fatalf("spec: %s", spec)
	}
	const rounds = 10
	for round := range rounds {
		for _, runtime := range []string{"/usr/bin/crun", "/var/runc"} {
			out := n.must(fmt.Sprintf("busybox nsenter -t 1 -m /var/busybox sh -c 'cd /var/b && /var/busybox time -v %s run r%d 2>&1'", runtime, round))
			rss := regexp.MustCompile(`Maximum resident set size \(kbytes\): (\d+)`).FindStringSubmatch(out)
			elapsed := regexp.MustCompile(`Elapsed \(wall clock\) time.*: (\d+)m ([0-9.]+)s`).FindStringSubmatch(out)
			if rss == nil || elapsed == nil {
				b.Fatalf("%s: %s", runtime, out)
			}
			seconds, err := strconv.ParseFloat(elapsed[2], 64)
			if err != nil {
				b.Fatal(err)
			}
			b.Logf("%s: %.2f s, %s kB", runtime, seconds, rss[1])
		}
	}
}
