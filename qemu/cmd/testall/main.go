// Command testall runs tests one after the other and keeps a record: commit,
// seed, and result and seconds of each case. What passed with the same sources is
// not run again, so that a run that was interrupted goes on. An argument is a
// package, or a package and one of its tests: ./qemu/e2e:TestNode.
package main

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
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
	Commit  string    `json:"commit"`  // with "-dirty" where the tree had changes
	Sources string    `json:"sources"` // the sha256 of what git lists at that commit outside of docs, where this record is kept
	Seed    string    `json:"seed"`    // SKERRY_SEED; replays the random moments
	Machine string    `json:"machine"`
	Started time.Time `json:"started"`
	Results []result  `json:"results"`
}

func main() {
	out := flag.String("o", "build/test-all.json", "the record")
	each := flag.String("each", "^$", "regular expression: of these packages each test is run and recorded by itself")
	flag.Parse()
	if flag.NArg() == 0 {
		fmt.Fprintln(os.Stderr, "testall: no packages; call it with make test-all")
		os.Exit(2)
	}
	packages, err := expand(flag.Args(), *each)
	if err == nil {
		err = run(*out, packages)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "testall:", err)
		os.Exit(1)
	}
}

// expand replaces the packages that match by their tests.
func expand(args []string, each string) ([]string, error) {
	match, err := regexp.Compile(each)
	if err != nil {
		return nil, fmt.Errorf("read -each: %w", err)
	}
	var list []string
	for _, p := range args {
		if !match.MatchString(p) {
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

func run(out string, packages []string) error {
	commit, sources, err := describe()
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
	if r.Sources != sources || strings.HasSuffix(commit, "-dirty") {
		machine, err := exec.Command("uname", "-srm").Output()
		if err != nil {
			return fmt.Errorf("name this machine: %w", err)
		}
		r = record{Commit: commit, Sources: sources, Seed: os.Getenv("SKERRY_SEED"), Started: time.Now().UTC(), Machine: strings.TrimSpace(string(machine))}
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

// describe names the commit and what is in it outside of docs.
func describe() (commit, sources string, err error) {
	head, err := exec.Command("git", "rev-parse", "HEAD").Output()
	if err != nil {
		return "", "", fmt.Errorf("find commit: %w", err)
	}
	status, err := exec.Command("git", "status", "--porcelain").Output()
	if err != nil {
		return "", "", fmt.Errorf("find changes: %w", err)
	}
	files, err := exec.Command("git", "ls-tree", "-r", "HEAD").Output()
	if err != nil {
		return "", "", fmt.Errorf("list files: %w", err)
	}
	h := sha256.New()
	for line := range strings.Lines(string(files)) {
		if _, path, _ := strings.Cut(line, "\t"); !strings.HasPrefix(path, "docs/") {
			h.Write([]byte(line))
		}
	}
	commit = strings.TrimSpace(string(head))
	if len(bytes.TrimSpace(status)) > 0 {
		commit += "-dirty"
	}
	return commit, hex.EncodeToString(h.Sum(nil)), nil
}

// logged is how t.Log prints.
var logged = regexp.MustCompile(`^ +\w+_test\.go:\d+: (.*)`)

// test runs one package; the output of what fails goes to the terminal.
func test(p string) ([]result, bool) {
	args := []string{"test", "-vet=off", "-json", "-count=1", "-timeout", "10h"}
	if folder, name, ok := strings.Cut(p, ":"); ok {
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
