package plan

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// TestVersions holds the versions that programs report against go.mod.
func TestVersions(t *testing.T) {
	mod, err := os.ReadFile("../../go.mod")
	if err != nil {
		t.Fatal(err)
	}
	required := func(module string) string {
		m := regexp.MustCompile(`(?m)^\t` + regexp.QuoteMeta(module) + ` (v\S+)`).FindSubmatch(mod)
		if m == nil {
			t.Fatalf("go.mod does not require %s", module)
		}
		return string(m[1])
	}
	if got, want := KubernetesVersion, required("k8s.io/kubernetes"); got != want {
		t.Errorf("KubernetesVersion = %s; want %s as in go.mod", got, want)
	}
	vars := map[string][]string{}
	for _, p := range Programs {
		vars[p.Name] = p.Vars
	}
	if want := "github.com/containerd/containerd/v2/version.Version=" + required("github.com/containerd/containerd/v2"); !slices.Contains(vars["containerd"], want) {
		t.Errorf("containerd is linked with %q; want %q", vars["containerd"], want)
	}
	minor := strings.Split(KubernetesVersion, ".")[1]
	if want := "k8s.io/component-base/version.gitMinor=" + minor; !slices.Contains(vars["skerryd"], want) {
		t.Errorf("skerryd is linked with %q; want %q", vars["skerryd"], want)
	}
}

func TestPrograms(t *testing.T) {
	for _, name := range []string{"init", "skerryd", "containerd", "containerd-shim-runc-v2", "bridge", "host-local", "portmap", "pause"} {
		if !slices.ContainsFunc(Programs, func(p Program) bool { return p.Name == name }) {
			t.Errorf("%s is not among the programs", name)
		}
	}
	p := &Plan{Without: []string{"skerryd"}}
	if got, want := len(p.Programs()), len(Programs)-1; got != want {
		t.Errorf("without one there are %d programs; want %d", got, want)
	}
	for _, prog := range p.Programs() {
		if prog.Name == "skerryd" {
			t.Error("Programs() holds what is left out")
		}
		if prog.Name == "init" && prog.Limit != 8_000_000 {
			t.Errorf("init may have %d bytes; want 8,000,000", prog.Limit)
		}
	}
}

func TestRun(t *testing.T) {
	var order []string
	step := func(name string, err error) Step {
		return Step{name, func(_ context.Context, p *Progress) error {
			order = append(order, name)
			p.Total(2)
			p.Add(1)
			fmt.Fprint(p.Writer(&bytes.Buffer{}), "x")
			p.Note("%d of %s", 1, name)
			return err
		}}
	}
	var out bytes.Buffer
	if err := Run(t.Context(), []Step{step("one", nil), step("two", nil)}, &out); err != nil {
		t.Fatal(err)
	}
	if got := out.String(); !slices.Equal(order, []string{"one", "two"}) || strings.Count(got, "\n") != 2 || !strings.Contains(got, " 2/2 two") || !strings.Contains(got, "1 of two") {
		t.Errorf("Run() ran %q and printed %q", order, got)
	}
	order = nil
	wrong := errors.New("wrong")
	err := Run(t.Context(), []Step{step("one", wrong), step("two", nil)}, &out)
	if !errors.Is(err, wrong) || !strings.HasPrefix(err.Error(), "one: ") || len(order) != 1 {
		t.Errorf("Run() = %v after %q; want the first step's error, with its name, and no second step", err, order)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(wrong)
	if err := Run(ctx, []Step{step("one", nil)}, &out); !errors.Is(err, wrong) || len(order) != 1 {
		t.Errorf("Run() when interrupted = %v after %q; want the cause and nothing done", err, order)
	}
}
