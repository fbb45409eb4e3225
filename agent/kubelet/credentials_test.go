package kubelet

import (
	"context"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	dockerconfig "github.com/containerd/containerd/v2/core/remotes/docker/config"
	"github.com/google/go-containerregistry/pkg/registry"
	"k8s.io/kubernetes/pkg/credentialprovider"

	"skerry.internal/skerry/agent/config"
)

// guarded is a registry behind TLS that wants a password: itself (Basic), or by
// sending to its token service (Bearer), as the public ones do.
func guarded(t *testing.T, bearer bool) *httptest.Server {
	t.Helper()
	const password, token = "hunter2", "t0ken"
	backend := registry.New()
	var s *httptest.Server
	s = httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		user, pass, _ := r.BasicAuth()
		known := user == "barn-1" && pass == password
		switch {
		case r.URL.Path == "/token" && known:
			fmt.Fprintf(w, `{"token": %q}`, token)
		case r.URL.Path != "/token" && (!bearer && known || bearer && r.Header.Get("Authorization") == "Bearer "+token):
			backend.ServeHTTP(w, r)
		default:
			challenge := `Basic realm="r"`
			if bearer {
				challenge = fmt.Sprintf(`Bearer realm="%s/token",service="s"`, s.URL)
			}
			w.Header().Set("WWW-Authenticate", challenge)
			w.WriteHeader(http.StatusUnauthorized)
		}
	}))
	t.Cleanup(s.Close)
	// An image's manifest is all that resolving asks for.
	manifest := `{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855","size":0},"layers":[]}`
	r := httptest.NewRequest(http.MethodPut, "/v2/barn/app/manifests/1", strings.NewReader(manifest))
	r.Header.Set("Content-Type", "application/vnd.oci.image.manifest.v1+json")
	w := httptest.NewRecorder()
	if backend.ServeHTTP(w, r); w.Code != http.StatusCreated {
		t.Fatalf("push: %d %s", w.Code, w.Body)
	}
	return s
}

// resolve does what a pull begins with: the kubelet looks for credentials by the
// image's name, containerd for the host's settings, and asks.
func resolve(ctx context.Context, t *testing.T, rootDir, hostDir, image string) error {
	t.Helper()
	var user, password string
	if file, err := credentialprovider.ReadDockerConfigJSONFile([]string{rootDir}); err == nil {
		var ring credentialprovider.BasicDockerKeyring
		ring.Add(nil, file)
		if found, ok := ring.Lookup(image); ok {
			user, password = found[0].Username, found[0].Password
		}
	}
	r := docker.NewResolver(docker.ResolverOptions{Hosts: dockerconfig.ConfigureHosts(ctx, dockerconfig.HostOptions{
		HostDir:     dockerconfig.HostDirFromRoot(hostDir),
		Credentials: func(string) (string, string, error) { return user, password, nil },
	})})
	_, _, err := r.Resolve(ctx, image)
	return err
}

func TestCredentials(t *testing.T) {
	const nowhere = "127.0.0.1:1" // a registry that does not answer
	for _, bearer := range []bool{false, true} {
		s := guarded(t, bearer)
		host := strings.TrimPrefix(s.URL, "https://")
		ca := config.PEM(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw}))
		right := config.Registry{Host: config.ImageHost(host), Username: "barn-1", Password: "hunter2", CA: ca}
		with := func(change func(*config.Registry)) []config.Registry {
			r := right
			change(&r)
			return []config.Registry{r}
		}
		for _, tt := range []struct {
			name  string
			image string // empty: of the registry itself
			list  []config.Registry
			want  string // in the error
		}{
			{"right", "", []config.Registry{right}, ""},
			{"no certificate looked at", "", with(func(r *config.Registry) { r.CA, r.Insecure = "", config.On }), ""},
			{"wrong password", "", with(func(r *config.Registry) { r.Password = "hunter3" }), "auth"},
			{"nobody", "", with(func(r *config.Registry) { r.Username, r.Password = "", "" }), "auth"},
			{"credentials of another registry", "", append(with(func(r *config.Registry) { r.Host = "other.example" }), config.Registry{Host: right.Host, CA: ca}), "auth"},
			{"through a mirror", nowhere + "/barn/app:1", with(func(r *config.Registry) { r.Host, r.Mirrors = nowhere, []config.URL{config.URL(s.URL)} }), ""},
			{"through a mirror, no certificate looked at", nowhere + "/barn/app:1", with(func(r *config.Registry) {
				r.Host, r.Mirrors, r.CA, r.Insecure = nowhere, []config.URL{config.URL(s.URL)}, "", config.On
			}), ""},
			{"a mirror with an authority of its own", nowhere + "/barn/app:1", []config.Registry{{Host: nowhere, Mirrors: []config.URL{config.URL(s.URL)}, Username: "barn-1", Password: "hunter2"}}, "x509"},
		} {
			root, dir := t.TempDir(), t.TempDir()
			// Something older is there, and must not stay.
			old := []config.Registry{{Host: right.Host, Username: "barn-1", Password: "hunter2", CA: ca, Insecure: config.On}}
			for _, list := range [][]config.Registry{old, tt.list} {
				if err := errors.Join(WriteRegistries(dir, list), WriteCredentials(root, list)); err != nil {
					t.Fatal(err)
				}
			}
			image := tt.image
			if image == "" {
				image = host + "/barn/app:1"
			}
			err := resolve(t.Context(), t, root, dir, image)
			if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
				t.Errorf("bearer %v: %s: resolve %s: %v; want %q", bearer, tt.name, image, err, tt.want)
			}
		}
	}
}

// The file with passwords is for root only, and goes with the last of them.
func TestWriteCredentials(t *testing.T) {
	root := filepath.Join(t.TempDir(), "kubelet")
	path := filepath.Join(root, "config.json")
	if err := WriteCredentials(root, []config.Registry{{Host: "docker.io", Username: "a", Password: "b"}}); err != nil {
		t.Fatal(err)
	}
	if st, err := os.Stat(path); err != nil || st.Mode() != 0o600 {
		t.Errorf("config.json has mode %v, %v; want 0600", st.Mode(), err)
	}
	file, err := credentialprovider.ReadDockerConfigJSONFile([]string{root})
	if err != nil {
		t.Fatal(err)
	}
	var ring credentialprovider.BasicDockerKeyring
	ring.Add(nil, file)
	if found, ok := ring.Lookup("docker.io/library/busybox"); !ok || found[0].Username != "a" || found[0].Password != "b" {
		t.Errorf("the kubelet finds %+v for docker.io; want a and b", found)
	}
	if err := WriteCredentials(root, []config.Registry{{Host: "docker.io"}}); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); err == nil {
		t.Error("config.json stays without credentials")
	}
}
