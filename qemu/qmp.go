package qemu

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"sync"
	"time"
)

// qmpClient speaks QEMU's control protocol: a JSON object a line. Events are passed over.
type qmpClient struct {
	mu   sync.Mutex // one command at a time
	conn net.Conn
	in   *bufio.Reader
}

func newQMP(conn net.Conn) *qmpClient { return &qmpClient{conn: conn, in: bufio.NewReader(conn)} }

type qmpReply struct {
	Return json.RawMessage `json:"return"`
	Error  *struct {
		Class, Desc string
	} `json:"error"`
	Event string `json:"event"`
}

// hello says nothing before QEMU does: while somebody else is connected, what is sent
// stays in the socket, and its answer may reach whoever connects next.
func (q *qmpClient) hello(ctx context.Context) error {
	release := q.bound(ctx)
	_, err := q.in.ReadBytes('\n')
	release()
	if err != nil {
		return fmt.Errorf("wait for QMP greeting: %w", errors.Join(ctx.Err(), err))
	}
	return q.run(ctx, "qmp_capabilities", nil, nil)
}

// bound ends what waits for the connection when ctx does, until release.
func (q *qmpClient) bound(ctx context.Context) (release func()) {
	stop := context.AfterFunc(ctx, func() { q.conn.SetDeadline(time.Unix(1, 0)) })
	return func() {
		if !stop() {
			q.conn.SetDeadline(time.Time{})
		}
	}
}

// run sends a command and decodes what it returns into result, unless that is nil.
func (q *qmpClient) run(ctx context.Context, command string, arguments, result any) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	defer q.bound(ctx)()
	request := map[string]any{"execute": command}
	if arguments != nil {
		request["arguments"] = arguments
	}
	if err := json.NewEncoder(q.conn).Encode(request); err != nil {
		return fmt.Errorf("send QMP command %q: %w", command, errors.Join(ctx.Err(), err))
	}
	for {
		line, err := q.in.ReadBytes('\n')
		if err != nil {
			return fmt.Errorf("wait for QMP command %q: %w", command, errors.Join(ctx.Err(), err))
		}
		var reply qmpReply
		if err := json.Unmarshal(line, &reply); err != nil {
			return fmt.Errorf("read QMP answer %q: %w", line, err)
		}
		switch {
		case reply.Event != "":
			continue
		case reply.Error != nil:
			return fmt.Errorf("run QMP command %q: %s: %s", command, reply.Error.Class, reply.Error.Desc)
		case result != nil:
			return json.Unmarshal(reply.Return, result)
		}
		return nil
	}
}

func (q *qmpClient) human(ctx context.Context, line string) (answer string, err error) {
	err = q.run(ctx, "human-monitor-command", map[string]string{"command-line": line}, &answer)
	return answer, err
}

func (q *qmpClient) stats(ctx context.Context, s *Stats) error {
	var disks []struct {
		Stats struct {
			Written int64 `json:"wr_bytes"`
			Read    int64 `json:"rd_bytes"`
			Flushes int64 `json:"flush_operations"`
		} `json:"stats"`
	}
	if err := q.run(ctx, "query-blockstats", nil, &disks); err != nil {
		return err
	}
	for _, d := range disks {
		s.Written, s.Read, s.Flushes = s.Written+d.Stats.Written, s.Read+d.Stats.Read, s.Flushes+d.Stats.Flushes
	}
	return nil
}

// A row of "info usernet": TCP[HOST_FORWARD]  14       127.0.0.1 34567       10.0.2.15  6443     0     0
var forwardRow = regexp.MustCompile(`(?m)^\s*TCP\[HOST_FORWARD\]\s+\d+\s+127\.0\.0\.1\s+(\d+)\s+\S+\s+(\d+)\s`)

func parseForwards(table string) map[int]int {
	ports := map[int]int{}
	for _, row := range forwardRow.FindAllStringSubmatch(table, -1) {
		host, _ := strconv.Atoi(row[1])
		guest, _ := strconv.Atoi(row[2])
		ports[guest] = host
	}
	return ports
}

// listen makes a listening socket for QEMU to inherit, so that nobody has to
// wait for the file to appear. Its path may be longer than the 107 bytes that a
// socket's address holds: it is reached through the folder's descriptor.
func listen(dir, name string) (*os.File, error) {
	os.Remove(filepath.Join(dir, name))
	var listener *net.UnixListener
	err := through(dir, name, func(addr *net.UnixAddr) (err error) {
		listener, err = net.ListenUnix("unix", addr)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("listen on %q: %w", filepath.Join(dir, name), err)
	}
	defer listener.Close()
	listener.SetUnlinkOnClose(false)
	return listener.File()
}

func dial(dir, name string) (conn net.Conn, err error) {
	err = through(dir, name, func(addr *net.UnixAddr) error {
		conn, err = net.DialUnix("unix", nil, addr)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("connect to %q: %w", filepath.Join(dir, name), err)
	}
	return conn, nil
}

func through(dir, name string, do func(*net.UnixAddr) error) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return do(&net.UnixAddr{Net: "unix", Name: fmt.Sprintf("/proc/self/fd/%d/%s", d.Fd(), name)})
}
