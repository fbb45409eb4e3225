// Package manifests holds the objects that every Skerry cluster starts with.
package manifests

import "embed"

// FS holds the YAML files.
//
//go:embed *.yaml
var FS embed.FS
