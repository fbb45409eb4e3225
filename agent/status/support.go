package status

import (
	"archive/tar"
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"skerry.internal/skerry/agent/config"
)

// supportLog is how much of each log goes into a support bundle, in bytes; it
// is held in memory meanwhile.
const supportLog = 4 << 20

// supportFiles are the files that go into a support bundle as they are. The
// list is closed: nothing gets in by lying in some folder.
var supportFiles = []string{
	"/etc/os-release", "/proc/cmdline", "/proc/diskstats", "/proc/loadavg", "/proc/meminfo", "/proc/modules", "/proc/partitions",
	"/proc/pressure/cpu", "/proc/pressure/io", "/proc/pressure/memory", "/proc/self/mountinfo", "/proc/swaps", "/proc/uptime", "/proc/version", "/proc/vmstat",
	"/proc/net/arp", "/proc/net/dev", "/proc/net/if_inet6", "/proc/net/ipv6_route", "/proc/net/route", "/proc/net/tcp", "/proc/net/tcp6", "/proc/net/udp",
	"/run/resolv.conf",
}

// writeSupport writes the support bundle, a compressed tar archive. What can't
// be collected is named in errors.txt; the rest is there.
func (s *Server) writeSupport(ctx context.Context, w io.Writer) error {
	zip := gzip.NewWriter(w)
	out := tar.NewWriter(zip)
	var problems bytes.Buffer
	add := func(name string, data []byte, err error) error {
		if err != nil {
			fmt.Fprintf(&problems, "%s: %v\n", name, err)
		}
		if len(data) == 0 {
			return nil
		}
		h := &tar.Header{Name: "support/" + name, Mode: 0o600, Size: int64(len(data)), ModTime: s.cfg.Now(), Format: tar.FormatPAX}
		if err := out.WriteHeader(h); err != nil {
			return err
		}
		_, err = out.Write(data)
		return err
	}
	status, err := json.MarshalIndent(s.cfg.Status(), "", "  ")
	if err := add("status.json", status, err); err != nil {
		return err
	}
	for _, name := range append([]string{kernelLog}, s.cfg.Units...) {
		log := &tailBuffer{max: supportLog}
		err := s.writeLog(ctx, log, name, -1, false)
		if err := add("logs/"+name+".log", log.data, err); err != nil {
			return err
		}
	}
	for _, file := range supportFiles {
		data, err := readBounded(file)
		if os.IsNotExist(err) {
			continue // a kernel without it
		}
		if err := add(strings.TrimPrefix(file, "/"), data, err); err != nil {
			return err
		}
	}
	if text, err := readBounded(s.cfg.Configuration); err == nil {
		if err := add(config.FileName, config.Blank(text), nil); err != nil {
			return err
		}
	}
	stacks := make([]byte, 1<<20)
	for name, data := range map[string][]byte{"processes.txt": processes("/proc"), "init-goroutines.txt": stacks[:runtime.Stack(stacks, true)]} {
		if err := add(name, data, nil); err != nil {
			return err
		}
	}
	if err := add("errors.txt", problems.Bytes(), nil); err != nil {
		return err
	}
	if err := out.Close(); err != nil {
		return err
	}
	return zip.Close()
}

func readBounded(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, supportLog))
}

// tailBuffer keeps the last bytes that were written to it.
type tailBuffer struct {
	data []byte
	max  int
}

func (b *tailBuffer) Write(p []byte) (int, error) {
	b.data = append(b.data, p...)
	if over := len(b.data) - b.max; over > 0 {
		b.data = b.data[:copy(b.data, b.data[over:])]
	}
	return len(p), nil
}

// processes lists what runs, without arguments: those may hold secrets.
func processes(proc string) []byte {
	var out bytes.Buffer
	fmt.Fprintln(&out, "PID PPID STATE RSS-KIB THREADS NAME")
	files, _ := filepath.Glob(filepath.Join(proc, "[0-9]*", "status"))
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			continue // it has just ended
		}
		field := map[string]string{}
		for lines := bufio.NewScanner(bytes.NewReader(data)); lines.Scan(); {
			name, value, _ := strings.Cut(lines.Text(), ":")
			field[name], _, _ = strings.Cut(strings.TrimSpace(value), " ")
		}
		fmt.Fprintln(&out, field["Pid"], field["PPid"], field["State"], field["VmRSS"], field["Threads"], field["Name"])
	}
	return out.Bytes()
}
