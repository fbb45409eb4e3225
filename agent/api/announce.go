package api

import "strings"

// ServiceType is what nodes announce themselves as by DNS-SD.
const ServiceType = "_skerry._tcp"

// LocalNameFile is the name, in init's directory in /run, of the file that holds
// the name this node answers to in .local: another than its hostname where another
// node has that.
const LocalNameFile = "local-name"

// Announcement is what a node tells everybody on its network.
type Announcement struct {
	Version string
	Cluster string
	Role    string
	Board   string
	Claimed bool
	ID      string // tells nodes of one name apart; says nothing else
}

// maxText is the longest string in a TXT record.
const maxText = 255

// TXT is the announcement as strings of a TXT record.
func (a Announcement) TXT() []string {
	claimed := "no"
	if a.Claimed {
		claimed = "yes"
	}
	var txt []string
	for _, s := range []string{"version=" + a.Version, "cluster=" + a.Cluster, "role=" + a.Role, "board=" + a.Board, "claimed=" + claimed, "id=" + a.ID} {
		if !strings.HasSuffix(s, "=") {
			txt = append(txt, s[:min(len(s), maxText)])
		}
	}
	return txt
}

// ParseTXT is the inverse of TXT. It leaves out what it does not know.
func ParseTXT(txt []string) Announcement {
	var a Announcement
	for _, s := range txt {
		key, value, _ := strings.Cut(s, "=")
		switch strings.ToLower(key) {
		case "version":
			a.Version = value
		case "cluster":
			a.Cluster = value
		case "role":
			a.Role = value
		case "board":
			a.Board = value
		case "claimed":
			a.Claimed = value == "yes"
		case "id":
			a.ID = value
		}
	}
	return a
}
