// Command testall runs the tests of packages one after the other and keeps a
// record: commit, seed, and result and seconds of each case. What passed at the
// same commit is not run again, so that a run that was interrupted goes on.
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
	"strings"
	"time"
)

type result struct {
	Package string  `json:"package"`
	Test    string  `json:"test,omitempty"` // empty: the package as a whole
	Result  string  `json:"result"`         // pass, fail or skip
	Seconds float64 `json:"seconds"`
	// Log is what the test said of itself: what it measured, how often it tried.
	Log []string `json:"log,omitempty"`
}

type record struct {
	Commit  string    `json:"commit"` // with "-dirty" where the tree had changes
	Seed    string    `json:"seed"`   // SKERRY_SEED; replays the random moments
	Machine string    `json:"machine"`
	Started time.Time `json:"started"`
	Results []result  `json:"results"`
}

func main() {
	out := flag.String("o", "build/test-all.json", "the record")
	flag.Parse()
	if flag.NArg() == 0 {
		fmt.Fprintln(os.Stderr, "testall: no packages; call it with make test-all")
		os.Exit(2)
	}
	if err := run(*out, flag.Args()); err != nil {
		fmt.Fprintln(os.Stderr, "testall:", err)
		os.Exit(1)
	}
}

func run(out string, packages []string) error {
	commit, err := describe()
	if err != nil {
		return err
	}
	var r record
	data, err := os.ReadFile(out)
	if err == nil {
		err = json.Unmarshal(data, &r)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("read record %q: %w; remove it", out, err)
	}
	if r.Commit != commit || strings.HasSuffix(commit, "-dirty") {
		machine, err := exec.Command("uname", "-srm").Output()
		if err != nil {
			return fmt.Errorf("name this machine: %w", err)
		}
		r = record{Commit: commit, Seed: os.Getenv("SKERRY_SEED"), Started: time.Now().UTC(), Machine: strings.TrimSpace(string(machine))}
	}
	if r.Seed == "" {
		r.Seed = fmt.Sprint(time.Now().UnixNano())
	}
	os.Setenv("SKERRY_SEED", r.Seed)
	passed := map[string]bool{}
	for _, c := range r.Results {
		if c.Test == "" && c.Result == "pass" {
			passed[c.Package] = true
		}
	}
	failed := 0
	for i, p := range packages {
		if passed[p] {
			fmt.Printf("%3d/%d %s passed before\n", i+1, len(packages), p)
			continue
		}
		fmt.Printf("%3d/%d %s\n", i+1, len(packages), p)
		cases, ok := test(p)
		if !ok {
			failed++
		}
		kept := r.Results[:0]
		for _, c := range r.Results {
			if c.Package != p {
				kept = append(kept, c)
			}
		}
		r.Results = append(kept, cases...)
		if err := save(out, r); err != nil {
			return err
		}
	}
	if failed > 0 {
		return fmt.Errorf("%d of %d packages failed; the record is %s", failed, len(packages), out)
	}
	fmt.Printf("all %d packages passed; the record is %s\n", len(packages), out)
	return nil
}

func describe() (string, error) {
	commit, err := exec.Command("git", "rev-parse", "HEAD").Output()
	if err != nil {
		return "", fmt.Errorf("find commit: %w", err)
	}
	status, err := exec.Command("git", "status", "--porcelain").Output()
	if err != nil {
		return "", fmt.Errorf("find changes: %w", err)
	}
	name := strings.TrimSpace(string(commit))
	if len(bytes.TrimSpace(status)) > 0 {
		name += "-dirty"
	}
	return name, nil
}

// logged is how t.Log prints.
var logged = regexp.MustCompile(`^ +\w+_test\.go:\d+: (.*)`)

// test runs one package; the output of what fails goes to the terminal.
func test(p string) ([]result, bool) {
	cmd := exec.Command("go", "test", "-vet=off", "-json", "-count=1", "-timeout", "10h", p)
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
			for _, line := range output[e.Test] {
				if m := logged.FindStringSubmatch(line); m != nil {
					r.Log = append(r.Log, m[1])
				}
			}
			cases = append(cases, r)
			if e.Test != "" {
				fmt.Printf("        %s %s %.1f s\n", e.Action, e.Test, e.Elapsed)
			}
			if e.Action == "fail" {
				fmt.Print(strings.Join(output[e.Test], ""))
			}
		}
	}
	return cases, cmd.Wait() == nil
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
