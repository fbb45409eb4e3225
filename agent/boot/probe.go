package boot

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"time"
)

// answersHTTP2 asks whether a program that serves gRPC on a unix socket still does:
// after the client's connection preface a server sends a SETTINGS frame (RFC 9113, 3.4). The
// kernel alone would accept a connection for a program that is stopped.
func answersHTTP2(socket string) func(context.Context) error {
	const (
		preface     = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
		settings    = "\x00\x00\x00\x04\x00\x00\x00\x00\x00" // length, type, flags, stream; an empty one
		settingsAck = "\x00\x00\x00\x04\x01\x00\x00\x00\x00"
	)
	return func(ctx context.Context) error {
		conn, err := (&net.Dialer{}).DialContext(ctx, "unix", socket)
		if err != nil {
			return fmt.Errorf("probe: %w", err)
		}
		defer conn.Close()
		if deadline, ok := ctx.Deadline(); ok {
			conn.SetDeadline(deadline)
		} else {
			conn.SetDeadline(time.Now().Add(10 * time.Second))
		}
		if _, err := io.WriteString(conn, preface+settings+settingsAck); err != nil {
			return fmt.Errorf("probe %q: %w", socket, err)
		}
		header := make([]byte, len(settings))
		if _, err := io.ReadFull(conn, header); err != nil {
			return fmt.Errorf("probe %q: %w", socket, err)
		}
		if kind := header[3]; kind != 4 || !bytes.Equal(header[5:], make([]byte, 4)) {
			return fmt.Errorf("probe %q: got a frame of type %d, want SETTINGS", socket, kind)
		}
		return nil
	}
}
