package image

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/mod/modfile"

	"skerry.internal/skerry/imagebuild/plan"
)

// Release is the version that the next tag will have.
const Release = "0.1.0"

// Source is the state of the project that an image is built from.
type Source struct {
	Version string
	Commit  string
	Time    time.Time // of the commit, never of the build: two builds give the same bytes
}

// ReadSource asks git for the commit. SOURCE_DATE_EPOCH overrides its time.
func ReadSource(project string) (Source, error) {
	if _, err := os.Stat(filepath.Join(project, "go.mod")); err != nil {
		return Source{}, fmt.Errorf("find the project in %q: run this at its top, or name it with --project: %w", project, err)
	}
	commit, err := git(project, "rev-parse", "HEAD")
	if err != nil {
		return Source{}, err
	}
	at, err := git(project, "log", "-1", "--format=%ct")
	if err != nil {
		return Source{}, err
	}
	if env := os.Getenv("SOURCE_DATE_EPOCH"); env != "" {
		at = env
	}
	seconds, err := strconv.ParseInt(at, 10, 64)
	if err != nil {
		return Source{}, fmt.Errorf("parse time of the source %q: want seconds since 1970", at)
	}
	s := Source{Commit: commit, Time: time.Unix(seconds, 0).UTC(), Version: Release + "-g" + commit[:min(12, len(commit))]}
	changed, err := git(project, "status", "--porcelain", "--untracked-files=no")
	if err != nil {
		return Source{}, err
	}
	if changed != "" {
		s.Version += "-dirty"
	}
	return s, nil
}

func git(dir string, args ...string) (string, error) {
	cmd := exec.Command("git", args...)
	cmd.Dir = dir
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("ask git %s: %w: %s", args[0], err, strings.TrimSpace(stderr.String()))
	}
	return strings.TrimSpace(string(out)), nil
}

// compile builds the programs into a folder that stays, one for all boards: the
// go command leaves alone what is up to date there.
func (b *Build) compile(ctx context.Context, p *plan.Progress) error {
	var programs []plan.Program
	b.programs, b.compilers = map[string]string{}, map[string]string{}
	for _, prog := range b.Plan().Programs() {
		if file, ok := b.standIns[prog.Name]; ok {
			b.programs[prog.Name] = file
		} else {
			programs = append(programs, prog)
		}
	}
	project, err := filepath.Abs(b.Project)
	if err != nil {
		return err
	}
	bin := filepath.Join(b.store.dir, "bin-"+b.board.Arch.Name+"-"+key(project)[:8])
	if err := os.MkdirAll(bin, 0o755); err != nil {
		return err
	}
	p.Total(int64(len(programs)))
	// What is compiled alike is compiled by one command, which is faster.
	for len(programs) > 0 {
		first := programs[0]
		var group, rest []plan.Program
		for _, prog := range programs {
			if prog.CGO == first.CGO && prog.Small == first.Small && slices.Equal(prog.Tags, first.Tags) {
				group = append(group, prog)
			} else {
				rest = append(rest, prog)
			}
		}
		if err := b.compileGroup(ctx, p, bin, group); err != nil {
			return err
		}
		programs = rest
	}
	p.Note("")
	return b.recordCompilers(ctx)
}

func (b *Build) compileGroup(ctx context.Context, p *plan.Progress, bin string, group []plan.Program) error {
	var names, imports, vars []string
	for _, prog := range group {
		names, imports = append(names, prog.Name), append(imports, prog.Import)
		for _, v := range prog.Vars {
			vars = append(vars, "-X "+v)
		}
	}
	p.Note("%s", strings.Join(names, " "))
	ld := append([]string{"-s", "-w"}, vars...)
	if group[0].CGO {
		ld = append(ld, "-linkmode external", "-extldflags '"+strings.Join(append([]string{"-static"}, b.board.Arch.LinkFlags...), " ")+"'")
	}
	args := []string{"build", "-trimpath", "-buildvcs=false", "-mod=readonly", "-ldflags", strings.Join(ld, " "), "-o", bin + string(filepath.Separator)}
	if tags := group[0].Tags; len(tags) > 0 {
		args = append(args, "-tags", strings.Join(tags, ","))
	}
	if group[0].Small {
		args = append(args, "-gcflags=all=-l")
	}
	cmd := exec.CommandContext(ctx, "go", append(args, imports...)...)
	cmd.Dir = b.Project
	var err error
	if cmd.Env, err = b.goEnv(group[0].CGO); err != nil {
		return err
	}
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 10 * time.Second
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if group[0].CGO && strings.Contains(stderr.String(), "C compiler") {
			return fmt.Errorf("compile %s: the C cross compiler is missing: apt install gcc-%s", names[0], b.board.Arch.Triplet)
		}
		if group[0].CGO && strings.Contains(stderr.String(), "collect2: fatal error: cannot find") {
			return fmt.Errorf("compile %s: the linker for %s is missing: apt install binutils-gold-%[3]s, before Debian 13 binutils-%[3]s", names[0], strings.Join(b.board.Arch.LinkFlags, " "), b.board.Arch.Triplet)
		}
		return fmt.Errorf("compile %s: %w\n%s", strings.Join(names, ", "), err, strings.TrimSpace(stderr.String()))
	}
	for _, prog := range group {
		file := filepath.Join(bin, prog.Name)
		info, err := os.Stat(file)
		if err != nil {
			return fmt.Errorf("compile %s: %w", prog.Name, err)
		}
		if limit := cmp.Or(b.limits.program, prog.Limit); prog.Limit > 0 && info.Size() > limit {
			return fmt.Errorf("program %s is too large by %s: got %s, want at most %s", prog.Name, size(info.Size()-limit), size(info.Size()), size(limit))
		}
		b.programs[prog.Name] = file
	}
	p.Add(int64(len(group)))
	return nil
}

// goEnv is the environment of the go command: everything that changes its
// output is set here, the rest (proxy, cache) is the user's. The compiler is the
// one that go.mod names, whatever the machine has: another go gets it.
func (b *Build) goEnv(cgo bool) ([]string, error) {
	file := filepath.Join(b.Project, "go.mod")
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("read go's version: %w", err)
	}
	mod, err := modfile.ParseLax(file, text, nil)
	if err != nil {
		return nil, fmt.Errorf("read go's version: %w", err)
	}
	if mod.Go == nil {
		return nil, fmt.Errorf("read go's version from %q: it has no line that begins with go", file)
	}
	drop := []string{"GOFLAGS", "GOEXPERIMENT", "GOARM64", "GOARM", "CGO_CFLAGS", "CGO_CPPFLAGS", "CGO_LDFLAGS", "CC", "GOWORK", "GO111MODULE"}
	env := slices.DeleteFunc(os.Environ(), func(kv string) bool {
		k, _, _ := strings.Cut(kv, "=")
		return slices.Contains(drop, k)
	})
	env = append(env, "GOOS=linux", "GOARCH="+b.board.Arch.GOARCH, "GOARM="+b.board.Arch.GOARM, "GOTOOLCHAIN=go"+mod.Go.Version, "GOWORK=off")
	if !cgo {
		return append(env, "CGO_ENABLED=0"), nil
	}
	return append(env, "CGO_ENABLED=1", "CC="+b.board.Arch.Triplet+"-gcc"), nil
}

// recordCompilers notes the versions that the same bytes depend on.
func (b *Build) recordCompilers(ctx context.Context) error {
	cmd := exec.CommandContext(ctx, "go", "env", "GOVERSION")
	cmd.Dir = b.Project
	var err error
	if cmd.Env, err = b.goEnv(false); err != nil {
		return err
	}
	out, err := cmd.Output()
	if err != nil {
		return fmt.Errorf("ask go for its version: %w", err)
	}
	b.compilers["go"] = strings.TrimSpace(string(out))
	cc := b.board.Arch.Triplet + "-gcc"
	out, err = exec.CommandContext(ctx, cc, "--version").Output()
	if errors.Is(err, exec.ErrNotFound) && slices.Contains(b.Without, "skerryd") {
		return nil
	}
	if err != nil {
		return fmt.Errorf("ask %s for its version: %w (apt install gcc-%s)", cc, err, b.board.Arch.Triplet)
	}
	b.compilers["c"], _, _ = strings.Cut(string(out), "\n")
	out, err = exec.CommandContext(ctx, cc, append(b.board.Arch.LinkFlags, "-Wl,--version")...).Output()
	if err != nil {
		return fmt.Errorf("ask the linker of %s for its version: %w", cc, err)
	}
	b.compilers["linker"], _, _ = strings.Cut(string(out), "\n")
	return nil
}
