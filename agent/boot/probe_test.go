package boot

import (
	"context"
	"net"
	"net/http"
	"path/filepath"
	"testing"
	"time"
)

func TestAnswersHTTP2(t *testing.T) {
	ask := func(socket string) error {
		ctx, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
		defer cancel()
		return answersHTTP2(socket)(ctx)
	}
	socket := filepath.Join(t.TempDir(), "socket")
	if err := ask(socket); err == nil {
		t.Error("no socket: got nil; want an error")
	}
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	// What a stopped program is: the kernel takes connections for it.
	if err := ask(socket); err == nil {
		t.Error("a server that does nothing: got nil; want an error")
	}
	server := http.Server{Protocols: new(http.Protocols)}
	server.Protocols.SetUnencryptedHTTP2(true)
	go server.Serve(l)
	defer server.Close()
	if err := ask(socket); err != nil {
		t.Errorf("an HTTP/2 server: %v", err)
	}
}
