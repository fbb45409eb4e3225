package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"skerry.internal/skerry/agent/api"
	"skerry.internal/skerry/agent/atomicfile"
)

// doer sends a request to a node's status API. What the node refuses is an error.
type doer interface {
	Do(ctx context.Context, method, path string, body io.Reader) (*http.Response, error)
}

// dialer makes a doer for a node of a cluster; an empty name is the only cluster
// there is.
type dialer func(clusterName, node string) (doer, error)

// transferLimit is the time for one database on its way.
const transferLimit = time.Hour

func clusterSnapshotsCommand(dial dialer) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "snapshots NODE",
		Short: "List the copies of the database that a server node keeps",
		Long: `List the copies of its database that a server node keeps on its own card: one a day, and those
taken on request. The newest comes first. They can be restored with skerry cluster restore NODE --snapshot NAME,
and fetched with skerry cluster backup NODE --snapshot NAME.`,
		Example: "  skerry cluster snapshots barn-1",
		Args:    exactArgs(1),
	}
	name := clusterFlag(cmd)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print them as JSON")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		node, err := dial(*name, args[0])
		if err != nil {
			return err
		}
		ctx, cancel := context.WithTimeout(cmd.Context(), time.Minute)
		defer cancel()
		var list []api.Snapshot
		if err := ask(ctx, node, http.MethodGet, "/v1/snapshots", nil, &list); err != nil {
			return err
		}
		if asJSON {
			return json.NewEncoder(cmd.OutOrStdout()).Encode(list)
		}
		t := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
		fmt.Fprintln(t, "NAME\tTAKEN\tWHY\tKIB")
		for _, s := range list {
			fmt.Fprintf(t, "%s\t%s\t%s\t%d\n", s.Name, s.Time.UTC().Format(time.DateTime), s.Reason, s.Bytes>>10)
		}
		return t.Flush()
	}
	return cmd
}

func clusterBackupCommand(dial dialer) *cobra.Command {
	var out, snapshot string
	cmd := &cobra.Command{
		Use:   "backup NODE -o FILE",
		Short: "Fetch a copy of a server node's database",
		Long: `Have a server node copy its database while it runs, and fetch the copy. The file holds all
objects of the cluster, with every Secret in plain text: keep it as you keep the cluster's root key. It holds no key
of the cluster or of a node. With --snapshot it fetches a copy that is there already, which works while
Kubernetes is dead.`,
		Example: "  skerry cluster backup barn-1 -o barn-1.db",
		Args:    exactArgs(1),
	}
	name := clusterFlag(cmd)
	cmd.Flags().StringVarP(&out, "output", "o", "", "the file to write, mode 0600")
	cmd.Flags().StringVar(&snapshot, "snapshot", "", "fetch this one, from skerry cluster snapshots")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if out == "" {
			return usageError{errors.New("-o is missing: want the file to write")}
		}
		if _, err := os.Lstat(out); err == nil {
			return fmt.Errorf("write %q: it exists: name another file, or remove it", out)
		}
		node, err := dial(*name, args[0])
		if err != nil {
			return err
		}
		ctx, cancel := context.WithTimeout(cmd.Context(), transferLimit)
		defer cancel()
		if snapshot == "" {
			var s api.Snapshot
			if err := ask(ctx, node, http.MethodPost, "/v1/snapshots?reason=backup", nil, &s); err != nil {
				return fmt.Errorf("%w; skerry cluster snapshots %s lists those that are there", err, args[0])
			}
			snapshot = s.Name
		}
		size, err := fetchSnapshot(ctx, node, snapshot, out)
		if err != nil {
			return err
		}
		fmt.Fprintf(cmd.OutOrStdout(), "%s: %d KiB, %s; it holds every Secret of the cluster\n", out, size>>10, snapshot)
		return nil
	}
	return cmd
}

// fetchSnapshot writes a snapshot to a file that isn't there yet, whole or not at all.
func fetchSnapshot(ctx context.Context, node doer, snapshot, out string) (size int64, err error) {
	resp, err := node.Do(ctx, http.MethodGet, "/v1/snapshots/"+url.PathEscape(snapshot), nil)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	f, err := os.CreateTemp(filepath.Dir(out), "."+filepath.Base(out)+".tmp*") // mode 0600
	if err != nil {
		return 0, fmt.Errorf("write %q: %w", out, err)
	}
	defer os.Remove(f.Name())
	defer f.Close()
	sum := sha256.New()
	if size, err = io.Copy(io.MultiWriter(f, sum), resp.Body); err != nil {
		return 0, fmt.Errorf("fetch %s: %w", snapshot, err)
	}
	if got, want := hex.EncodeToString(sum.Sum(nil)), resp.Header.Get(api.SHA256Header); got != want {
		return 0, fmt.Errorf("fetch %s: got SHA-256 %s, want %q: it was changed on its way; try again", snapshot, got, want)
	}
	if err := f.Sync(); err != nil {
		return 0, fmt.Errorf("write %q: %w", out, err)
	}
	if err := os.Link(f.Name(), out); errors.Is(err, fs.ErrExist) {
		return 0, fmt.Errorf("write %q: it exists: name another file, or remove it", out)
	} else if err != nil {
		return 0, fmt.Errorf("write %q: %w", out, err)
	}
	return size, atomicfile.SyncDir(filepath.Dir(out))
}

func clusterRestoreCommand(dial dialer) *cobra.Command {
	var snapshot, yes string
	cmd := &cobra.Command{
		Use:   "restore NODE FILE|--snapshot NAME --yes NODE",
		Short: "Replace a server node's database by a copy of it",
		Long: `Replace a server node's database, by a file from skerry cluster backup or by a snapshot that lies
on the node. What has changed in the cluster since then is lost: objects made later are gone, and their pods end. The database
that was in use is put aside on the node, not removed. The Kubernetes API is off for a moment; pods that the copy knows
run on. Works while Kubernetes is dead.

Programs in pods that watch the API should be restarted afterwards: what they remember may be from a later time.`,
		Example: "  skerry cluster snapshots barn-1\n  skerry cluster restore barn-1 --snapshot 000012-20260102T030405Z-daily.db --yes barn-1\n  skerry cluster restore barn-1 barn-1.db --yes barn-1",
		Args: func(cmd *cobra.Command, args []string) error {
			if (len(args) != 2 || snapshot != "") && (len(args) != 1 || snapshot == "") {
				return usageError{fmt.Errorf("want a node, and either a file or --snapshot: %s", cmd.UseLine())}
			}
			return nil
		},
	}
	name := clusterFlag(cmd)
	cmd.Flags().StringVar(&snapshot, "snapshot", "", "the name of one that lies on the node")
	cmd.Flags().StringVar(&yes, "yes", "", "the node once more: you know what is lost")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if yes != args[0] {
			return usageError{fmt.Errorf("what has changed in the cluster since that copy will be lost; if that is what you want, add: --yes %s", args[0])}
		}
		path, body := "/v1/restore?snapshot="+url.QueryEscape(snapshot), io.Reader(nil)
		if snapshot == "" {
			f, sum, err := openDatabase(args[1])
			if err != nil {
				return err
			}
			defer f.Close()
			path, body = "/v1/restore?"+api.SHA256Parameter+"="+sum, f
		}
		node, err := dial(*name, args[0])
		if err != nil {
			return err
		}
		ctx, cancel := context.WithTimeout(cmd.Context(), transferLimit)
		defer cancel()
		var r api.Restored
		if err := ask(ctx, node, http.MethodPost, path, body, &r); err != nil {
			return err
		}
		fmt.Fprintf(cmd.OutOrStdout(), "the database is in place, and Kubernetes starts with it; the one before is kept on the node as %s\nnow type: skerry node status %s\n", r.Aside, args[0])
		return nil
	}
	return cmd
}

// openDatabase opens a file to send, and sums it up.
func openDatabase(path string) (_ *os.File, sum string, err error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, "", fmt.Errorf("read database: %w", err)
	}
	h := sha256.New()
	if _, err = io.Copy(h, f); err == nil {
		_, err = f.Seek(0, io.SeekStart)
	}
	if err != nil {
		f.Close()
		return nil, "", fmt.Errorf("read database: %w", err)
	}
	return f, hex.EncodeToString(h.Sum(nil)), nil
}

// ask sends a request and reads the answer's JSON.
func ask(ctx context.Context, node doer, method, path string, body io.Reader, answer any) error {
	resp, err := node.Do(ctx, method, path, body)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if err := json.NewDecoder(resp.Body).Decode(answer); err != nil {
		return fmt.Errorf("read the node's answer: %w", err)
	}
	return nil
}
