package boot

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"skerry.internal/skerry/agent/api"
	"skerry.internal/skerry/agent/config"
	"skerry.internal/skerry/agent/slots"
)

// When something counts as a problem.
const (
	settling     = 2 * time.Minute // after power-on, for what takes its time
	staleTime    = 24 * time.Hour  // without an answer of a time server
	stateTight   = 20              // one part in so many of STATE is left
	memoryTight  = 20              // one part in so many of memory is left
	inodesTight  = 20
	manyRestarts = 5

	authorityTight = 180 * 24 * time.Hour
)

// outlived are steps whose failure is seen in what they were to bring about,
// and is over when that is there.
var outlived = []string{"wait for network", "start containerd", "start skerryd"}

// problems says what is wrong in st, the worst first.
func problems(st api.Status) []api.Problem {
	var list []api.Problem
	add := func(where, what, doing string) {
		list = append(list, api.Problem{Where: where, What: what, Doing: doing})
	}
	stateProblems(st.State, add)
	slotProblems(st, add)
	networkProblems(st, add)
	unitProblems(st, add)
	for _, step := range st.Steps {
		if step.Error != "" && !slices.Contains(outlived, step.Name) {
			add("boot", fmt.Sprintf("%s: %s", step.Name, step.Error), "the boot went on without; it is tried again at the next one")
		}
	}
	for _, m := range st.Mistakes {
		add(config.FileName, config.Mistake{Line: m.Line, Text: m.Text}.String(), "the rest of the file counts; correct it on the partition FIRMWARE and restart the node")
	}
	if st.Uptime > settling {
		clockProblems(st, add)
	}
	if m := st.Memory; m.Total > 0 && m.Available < m.Total/memoryTight {
		add("memory", fmt.Sprintf("%d of %d MiB are left", m.Available>>20, m.Total>>20), "pods are ended before the system is; run fewer, or give them limits")
	}
	return list
}

type adder func(where, what, doing string)

func stateProblems(fs api.FileSystem, add adder) {
	switch {
	case fs.Size == 0:
		return // not mounted yet: the step that mounts it says why
	case fs.ReadOnly:
		add("STATE", "the file system is read-only: the kernel has found an error on it", "it is repaired at the next start; if it comes back, the card is worn out")
	}
	if fs.Free < fs.Size/stateTight {
		add("STATE", fmt.Sprintf("full: %d of %d MiB are left", fs.Free>>20, fs.Size>>20), "Kubernetes removes unused images and ends pods that use much; delete what is not needed")
	}
	if fs.Inodes > 0 && fs.InodesFree < fs.Inodes/inodesTight {
		add("STATE", fmt.Sprintf("too many files: room for %d of %d is left", fs.InodesFree, fs.Inodes), "end the pods that make so many")
	}
}

func slotProblems(st api.Status, add adder) {
	for _, s := range st.Slots {
		switch {
		case s.Status == string(slots.Bad) && s.Name == st.Slot:
			add("slot "+s.Name, "it runs though it was judged bad: there is nothing better", "flash the card anew")
		case s.Status == string(slots.Bad):
			add("slot "+s.Name, "it was judged bad; the other one runs", "the next update writes it anew")
		}
	}
}

func networkProblems(st api.Status, add adder) {
	n := st.Network
	if n.Address.IsValid() {
		return
	}
	for _, i := range n.Interfaces {
		if len(i.Addresses) > 0 {
			return // IPv6 alone
		}
	}
	plugged := slices.ContainsFunc(n.Interfaces, func(i api.Interface) bool { return i.Plugged })
	switch {
	case len(n.Interfaces) == 0:
		add("network", "there is no wired network interface", "one that is plugged in is used at once")
	case !plugged:
		add("network", "no cable is plugged in", "pods run on; plug a cable in, and an address is asked for at once")
	default:
		add("network", "no address: no DHCP server has answered", "it is asked again and again; a fixed address goes into "+config.FileName)
	}
}

// authorityProblems warns before the node's own authority ends: no certificate that
// it signs is valid longer.
func authorityProblems(now, ends time.Time) []api.Problem {
	left := ends.Sub(now)
	if ends.IsZero() || left > authorityTight {
		return nil
	}
	what := "the authority that the cluster has given this node ends on " + ends.UTC().Format(time.DateOnly) + ": its programs will not believe each other any more"
	if left < 0 {
		what = "the authority that the cluster has given this node has ended on " + ends.UTC().Format(time.DateOnly)
	}
	return []api.Problem{{Where: "certificates", What: what,
		Doing: "keep its objects (skerry cluster backup), flash its card with skerry flash --cluster, and bring them back (skerry cluster restore)"}}
}

func unitProblems(st api.Status, add adder) {
	for _, u := range st.Units {
		what := ""
		switch {
		case u.State == "waiting":
			what = "not running"
		case u.State == "hung":
			what = "hangs"
		case u.State == "ready" && strings.HasPrefix(u.Status, "error:"):
			what = "it runs, but something is wrong"
		case u.State == "starting" && strings.HasPrefix(u.Status, "error:"), u.State == "starting" && (u.Restarts > 0 || st.Time.Sub(u.Since) > 5*settling):
			what = "not ready yet"
		case u.State == "ready" && u.Restarts >= manyRestarts && st.Time.Sub(u.Since) < 5*settling:
			what = "ready, but for how long"
		default:
			continue
		}
		for _, more := range []string{u.Status, u.LastExit} {
			if more != "" {
				what += "; " + more
			}
		}
		if u.Restarts > 0 {
			what += fmt.Sprintf("; restarts: %d", u.Restarts)
		}
		doing := "it is being started; skerry node logs shows what it says"
		if !u.Retry.IsZero() {
			doing = fmt.Sprintf("it is started again at %s; skerry node logs shows what it says", u.Retry.UTC().Format(time.TimeOnly))
		}
		add("unit "+u.Name, what, doing)
	}
}

func clockProblems(st api.Status, add adder) {
	c := st.Clock
	switch {
	case c.Synced.IsZero():
		from := map[string]string{"rtc": "the hardware clock", "saved": "when it was last on", "build": "when the system was built"}[c.Source]
		if from == "" {
			from = "nowhere"
		}
		add("clock", "no time server has answered; the time comes from "+from, "they are asked again and again; name one that can be reached under ntp in "+config.FileName)
	case st.Time.Sub(c.Synced) > staleTime:
		add("clock", fmt.Sprintf("no time server has answered since %s", strings.Replace(c.Synced.UTC().Format(time.DateTime), " ", ", ", 1)), "they are asked again and again")
	}
}
