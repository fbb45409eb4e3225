package main

import (
	"os"
	"path/filepath"
	"reflect"
	"testing"
	"time"
)

// TestRecordIsReadAgain: what is saved is what the next run goes on from.
func TestRecordIsReadAgain(t *testing.T) {
	path := filepath.Join(t.TempDir(), "build", "record.json")
	if r, err := load(path); err != nil || len(r.Results) > 0 {
		t.Errorf("load() without a record = %v, %v", r, err)
	}
	want := record{Seed: "7", Results: []result{
		{Package: "./a:TestA", Test: "TestA/one", Result: "pass", Seconds: 1.5, Log: []string{"three cuts"}},
		{Package: "./a:TestA", Result: "pass", Seconds: 2, Run: &Run{Commit: "c", Sources: "s", Machine: "m", Started: time.Unix(7, 0).UTC()}},
	}}
	if err := save(path, want); err != nil {
		t.Fatal(err)
	}
	if got, err := load(path); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("load() = %+v, %v; want %+v", got, err, want)
	}
}

// TestSaid: what t.Log printed is kept, without the folders of that one run.
func TestSaid(t *testing.T) {
	in := []string{"=== RUN   TestA\n", "    a_test.go:7: seed 5\n", "    a_test.go:9: wrote " + filepath.Join(t.TempDir(), "vm/disk") + "\n", "    --- PASS: TestA/one\n"}
	if got, want := said(in), []string{"seed 5", "wrote vm/disk"}; !reflect.DeepEqual(got, want) {
		t.Errorf("said() = %q; want %q", got, want)
	}
}

// TestNothingIsSkippedForWantOfTools runs a go command that passes in CI only.
func TestNothingIsSkippedForWantOfTools(t *testing.T) {
	bin := t.TempDir()
	if err := os.WriteFile(filepath.Join(bin, "go"), []byte("#!/bin/sh\n[ \"$CI\" = true ]\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", bin)
	t.Setenv("CI", "")
	if _, ok := test("./some/package"); !ok {
		t.Error("the tests run without CI=true, so what is missing would count as passed")
	}
}

// TestWithoutItsTag runs a go command that finds no test to run, as it does for a
// test whose build tag is not set: that is no pass. One that runs it is the twin.
func TestWithoutItsTag(t *testing.T) {
	bin := t.TempDir()
	t.Setenv("PATH", bin)
	for _, tt := range []struct {
		events string
		want   bool
	}{
		{`{"Action":"pass","Package":"e2e","Elapsed":0.1}`, false},
		{`{"Action":"pass","Package":"e2e","Test":"TestMonth","Elapsed":9}
{"Action":"pass","Package":"e2e","Elapsed":9.1}`, true},
	} {
		if err := os.WriteFile(filepath.Join(bin, "go"), []byte("#!/bin/sh\necho '"+tt.events+"'\n"), 0o755); err != nil {
			t.Fatal(err)
		}
		cases, ok := test("./qemu/e2e:TestMonth")
		if ok != tt.want || len(cases) == 0 || (cases[len(cases)-1].Result == "pass") != tt.want {
			t.Errorf("%s: passed %v, %+v; want %v", tt.events, ok, cases, tt.want)
		}
	}
}
