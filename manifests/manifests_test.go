package manifests

import (
	"io/fs"
	"regexp"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

// Each document is an object, and each image is pinned by digest.
func TestManifests(t *testing.T) {
	files, err := fs.Glob(FS, "*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatalf("files = %v, %v", files, err)
	}
	image := regexp.MustCompile(`(?m)^\s*(?:- )?image:\s*(\S+)`)
	for _, file := range files {
		data, err := FS.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for i, doc := range strings.Split(string(data), "\n---\n") {
			var raw map[string]any
			if err := yaml.Unmarshal([]byte(doc), &raw); err != nil {
				t.Errorf("%s, document %d: %v", file, i, err)
				continue
			}
			if raw["apiVersion"] == nil || raw["kind"] == nil || raw["metadata"] == nil {
				t.Errorf("%s, document %d: got %v; want an object", file, i, raw)
			}
		}
		for _, m := range image.FindAllStringSubmatch(string(data), -1) {
			if !strings.Contains(m[1], "@sha256:") {
				t.Errorf("%s: image %s is not pinned by digest", file, m[1])
			}
		}
	}
}
