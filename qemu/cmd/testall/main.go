// Command testall runs tests one after the other and keeps a record: seed, and
// result, seconds and commit of each case. What passed with the same sources is
// not run again, so that a run that was interrupted, or stopped by a failure, goes on. An argument is a
// package, or one test of ./qemu/e2e, whose tests are recorded one by one: ./qemu/e2e:TestNode.
package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"
)

type result struct {
	Package string  `json:"package"`        // with its test where tests are recorded one by one
	Test    string  `json:"test,omitempty"` // empty: the package as a whole
	Result  string  `json:"result"`         // pass, fail or skip
	Seconds float64 `json:"seconds"`
	// Log is what the test said of itself: what it measured, how often it tried.
	Log []string `json:"log,omitempty"`
	// Of the package as a whole: what was run, when and where.
	*Run
}

// Run is exported for encoding/json, which sets no unexported embedded pointer.
type Run struct {
	Commit  string    `json:"commit"`  // with "-dirty" where the tree had changes
	Sources string    `json:"sources"` // a hash of what the case depends on; empty for a tree with changes
	Machine string    `json:"machine"`
	Started time.Time `json:"started"`
}

type record struct {
	// Commit is the one on which make test-all has found that all has passed, then
	// or before with the same sources; empty until it has.
	Commit  string   `json:"commit"`
	Seed    string   `json:"seed"` // SKERRY_SEED; replays the random moments
	Results []result `json:"results"`
}

// module is the path of this project in imports.
const module = "skerry.internal/skerry"

func main() {
	out := flag.String("o", "build/test-all.json", "the record")
	whole := flag.Bool("whole", false, "these are all packages: what else is in the record goes, and when all has passed the record says so")
	flag.Parse()
	if flag.NArg() == 0 {
		fmt.Fprintln(os.Stderr, "testall: no packages; call it with make test-all")
		os.Exit(2)
	}
	packages, err := expand(flag.Args())
	if err == nil {
		err = runAll(*out, packages, *whole)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "testall:", err)
		os.Exit(1)
	}
}

// e2e is the package whose tests are run and recorded one by one.
const e2e = "./qemu/e2e"

// expand names packages by their folders, and replaces e2e by its tests.
func expand(args []string) ([]string, error) {
	var list []string
	for _, p := range args {
		if rest, ok := strings.CutPrefix(p, module); ok {
			p = "." + rest
		}
		if p != e2e {
			list = append(list, p)
			continue
		}
		names, err := exec.Command("go", "test", "-vet=off", "-list", "^Test", p).Output()
		if err != nil {
			return nil, fmt.Errorf("list tests of %s: %w", p, err)
		}
		for _, name := range strings.Fields(string(names)) {
			if strings.HasPrefix(name, "Test") {
				list = append(list, p+":"+name)
			}
		}
	}
	return list, nil
}

func runAll(out string, packages []string, whole bool) error {
	machine, err := exec.Command("uname", "-srm").Output()
	if err != nil {
		return fmt.Errorf("name this machine: %w", err)
	}
	r, err := load(out)
	if err != nil {
		return err
	}
	if s := os.Getenv("SKERRY_SEED"); s != "" {
		r.Seed = s
	}
	if r.Seed == "" {
		r.Seed = fmt.Sprint(time.Now().UnixNano())
	}
	os.Setenv("SKERRY_SEED", r.Seed)
	failed := 0
	for i, p := range packages {
		this, err := describe(p)
		if err != nil {
			return err
		}
		this.Machine = strings.TrimSpace(string(machine))
		if slices.ContainsFunc(r.Results, func(c result) bool {
			return c.Package == p && c.Run != nil && c.Result == "pass" && c.Sources != "" && c.Sources == this.Sources
		}) {
			fmt.Printf("%3d/%d %s passed before\n", i+1, len(packages), p)
			continue
		}
		fmt.Printf("%3d/%d %s\n", i+1, len(packages), p)
		r.Commit = ""
		cases, ok := test(p)
		if !ok {
			failed++
		}
		// The tree may have changed since, and the test be of neither.
		if after, err := describe(p); err != nil || after.Sources != this.Sources {
			this.Sources = ""
		}
		for i := range cases {
			if cases[i].Test == "" {
				cases[i].Run = &this
			}
		}
		r.Results = append(slices.DeleteFunc(r.Results, func(c result) bool { return c.Package == p }), cases...)
		if err := save(out, r); err != nil {
			return err
		}
	}
	if failed > 0 {
		return fmt.Errorf("%d of %d failed; the record is %s", failed, len(packages), out)
	}
	if whole {
		now, err := describe(packages[0])
		if err != nil {
			return err
		}
		r.Commit = now.Commit
		r.Results = slices.DeleteFunc(r.Results, func(c result) bool { return !slices.Contains(packages, c.Package) })
	}
	fmt.Printf("all %d passed; the record is %s\n", len(packages), out)
	return save(out, r)
}

const dirty = "-dirty"

// describe says what a case is run of, now.
func describe(p string) (Run, error) {
	r := Run{Started: time.Now().UTC().Truncate(time.Second)}
	head, err := exec.Command("git", "rev-parse", "HEAD").Output()
	if err != nil {
		return r, fmt.Errorf("find commit: %w", err)
	}
	status, err := exec.Command("git", "status", "--porcelain").Output()
	if err != nil {
		return r, fmt.Errorf("find changes: %w", err)
	}
	r.Commit = strings.TrimSpace(string(head))
	if len(bytes.TrimSpace(status)) > 0 {
		r.Commit += dirty
		return r, nil
	}
	s, err := findSources(e2e)
	if err == nil {
		r.Sources, err = s.of(p)
	}
	return r, err
}

// logged is how t.Log prints; temporary is a test's own folder, which is nobody's
// business and differs each time.
var (
	logged    = regexp.MustCompile(`^ +\w+_test\.go:\d+: (.*)`)
	temporary = regexp.MustCompile(regexp.QuoteMeta(os.TempDir()) + `/[^/\s]+/(\d+/)?`)
)

// said returns what a test says of itself in its output.
func said(output []string) (log []string) {
	for _, line := range output {
		if m := logged.FindStringSubmatch(line); m != nil {
			log = append(log, temporary.ReplaceAllString(m[1], ""))
		}
	}
	return log
}

// test runs one package; the output of what fails goes to the terminal.
func test(p string) ([]result, bool) {
	args := []string{"test", "-vet=off", "-json", "-count=1", "-timeout", "10h"}
	folder, name, single := strings.Cut(p, ":")
	if single {
		args = append(args, "-run", "^"+name+"$", folder)
	} else {
		args = append(args, p)
	}
	cmd := exec.Command("go", args...)
	cmd.Env = append(os.Environ(), "CI=true") // what a test needs and does not find is a failure, not a skip
	cmd.Stderr = os.Stderr
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		fmt.Println(err)
		return nil, false
	}
	if err := cmd.Start(); err != nil {
		fmt.Println(err)
		return nil, false
	}
	var cases []result
	output := map[string][]string{}
	for s := bufio.NewScanner(stdout); s.Scan(); {
		var e struct {
			Action, Package, Test, Output string
			Elapsed                       float64
		}
		if json.Unmarshal(s.Bytes(), &e) != nil {
			fmt.Println(s.Text())
			continue
		}
		switch e.Action {
		case "output":
			output[e.Test] = append(output[e.Test], e.Output)
		case "pass", "fail", "skip":
			r := result{Package: p, Test: e.Test, Result: e.Action, Seconds: e.Elapsed}
			r.Log = said(output[e.Test])
			cases = append(cases, r)
			if e.Test != "" {
				fmt.Printf("        %s %s %.1f s\n", e.Action, e.Test, e.Elapsed)
			}
			if e.Action == "fail" {
				fmt.Print(strings.Join(output[e.Test], ""))
			}
		}
	}
	ok := cmd.Wait() == nil
	if single && !slices.ContainsFunc(cases, func(c result) bool { return c.Test == name }) {
		fmt.Printf("%s was not run: is it built without a tag that it needs?\n", p)
		ok = false
		for i := range cases {
			cases[i].Result = "fail"
		}
	}
	return cases, ok
}

// load reads a record; there need not be one.
func load(path string) (record, error) {
	var r record
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return r, nil
	}
	if err == nil {
		err = json.Unmarshal(data, &r)
	}
	if err != nil {
		return r, fmt.Errorf("read record %q: %w; remove it", path, err)
	}
	return r, nil
}

// save replaces the record whole, so that an interruption loses one package.
func save(path string, r record) error {
	data, err := json.MarshalIndent(r, "", " ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("write record: %w", err)
	}
	if err := os.WriteFile(path+".part", append(data, '\n'), 0o644); err != nil {
		return fmt.Errorf("write record: %w", err)
	}
	return os.Rename(path+".part", path)
}
