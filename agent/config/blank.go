package config

import (
	"bytes"
	"fmt"
	"regexp"

	"go.yaml.in/yaml/v3"
)

const blanked = "(blanked)"

var (
	secretName = regexp.MustCompile(`(?i)(pass|pwd|secret|token|auth|credential|private|key$)`)
	userInfo   = regexp.MustCompile(`//[^/@\s]*@`)
)

// Blank returns the text of a configuration file without its secrets, for
// people who help: the values of keys that sound like one, users and passwords
// in URLs, and all comments. A text that can't be taken apart is left out, since
// nobody knows what is in it.
func Blank(text []byte) []byte {
	var doc yaml.Node
	if err := yaml.Unmarshal(bytes.TrimPrefix(text, []byte("\xef\xbb\xbf")), &doc); err != nil {
		return fmt.Appendf(nil, "# left out: %d bytes that are not YAML\n", len(text))
	}
	if len(doc.Content) == 0 {
		return nil
	}
	blank(&doc)
	var out bytes.Buffer
	e := yaml.NewEncoder(&out)
	e.SetIndent(2)
	if err := e.Encode(&doc); err != nil {
		return fmt.Appendf(nil, "# left out: %d bytes that can't be written again\n", len(text))
	}
	return out.Bytes()
}

func blank(n *yaml.Node) {
	n.HeadComment, n.LineComment, n.FootComment = "", "", ""
	if n.Kind == yaml.ScalarNode {
		n.Value = userInfo.ReplaceAllString(n.Value, "//"+blanked+"@")
	}
	for i, c := range n.Content {
		if n.Kind == yaml.MappingNode && i%2 == 1 && secretName.MatchString(n.Content[i-1].Value) {
			*c = yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: blanked}
		}
		blank(c)
	}
}
