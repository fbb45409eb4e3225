// Package addons brings a cluster what it needs to start and what comes with
// the root file system: container images, imported into containerd without any
// network, and objects, applied to the API server.
//
// Left out: removing an object that left the folder, and a folder on STATE
// that people can write to.
package addons

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/diff"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/discovery/cached/memory"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/restmapper"
	"k8s.io/client-go/tools/clientcmd"
)

// Manager names us as the owner of the fields we apply.
const Manager = "skerry"

// ImportImages imports every archive (docker save format, with a config named
// by its digest) in dir whose images containerd does not have. An image that is
// there is not written again: that would wear the flash at each start.
func ImportImages(ctx context.Context, socket, dir string) error {
	archives, err := filepath.Glob(filepath.Join(dir, "*.tar"))
	if err != nil {
		return fmt.Errorf("list images in %q: %w", dir, err)
	}
	client, err := containerd.New(socket)
	if err != nil {
		return fmt.Errorf("connect to containerd at %q: %w", socket, err)
	}
	defer client.Close()
	ctx = namespaces.WithNamespace(ctx, "k8s.io") // where the kubelet's images are
	for _, archive := range archives {
		have, err := present(ctx, client, archive)
		if err != nil {
			return fmt.Errorf("look at image archive %q: %w", archive, err)
		}
		if have {
			continue
		}
		if err := importOne(ctx, client, archive); err != nil {
			return fmt.Errorf("import image archive %q: %w", archive, err)
		}
	}
	return nil
}

func importOne(ctx context.Context, client *containerd.Client, archive string) error {
	f, err := os.Open(archive)
	if err != nil {
		return err
	}
	defer f.Close()
	imported, err := client.Import(ctx, f)
	if err != nil {
		return err
	}
	// containerd flushes what it notes about a layer, but not the layer's files: a
	// power cut would leave empty files that it takes for unpacked ones for ever.
	sync := containerd.WithUnpackApplyOpts(diff.WithSyncFs(true))
	for _, i := range imported {
		if err := containerd.NewImage(client, i).Unpack(ctx, "overlayfs", sync); err != nil {
			return fmt.Errorf("unpack %s: %w", i.Name, err)
		}
	}
	return nil
}

// present reports whether containerd has all images that an archive holds,
// with the same configuration.
func present(ctx context.Context, client *containerd.Client, archive string) (bool, error) {
	m, err := tarball.LoadManifest(func() (io.ReadCloser, error) { return os.Open(archive) })
	if err != nil {
		return false, err
	}
	for _, d := range m {
		for _, tag := range d.RepoTags {
			i, err := client.GetImage(ctx, tag)
			if errdefs.IsNotFound(err) {
				return false, nil
			}
			if err != nil {
				return false, err
			}
			config, err := i.Config(ctx)
			if err != nil || !strings.Contains(d.Config, config.Digest.Encoded()) {
				return false, nil // another version, or damaged: import it again
			}
		}
	}
	return true, nil
}

// Apply applies every object in the YAML files of fsys, server-side.
func Apply(ctx context.Context, kubeconfig string, fsys fs.FS) error {
	cfg, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return fmt.Errorf("apply manifests: %w", err)
	}
	dyn, err := dynamic.NewForConfig(cfg)
	if err != nil {
		return fmt.Errorf("apply manifests: %w", err)
	}
	disco, err := discovery.NewDiscoveryClientForConfig(cfg)
	if err != nil {
		return fmt.Errorf("apply manifests: %w", err)
	}
	mapper := restmapper.NewDeferredDiscoveryRESTMapper(memory.NewMemCacheClient(disco))
	files, err := fs.Glob(fsys, "*.yaml")
	if err != nil {
		return fmt.Errorf("list manifests: %w", err)
	}
	for _, file := range files {
		if err := applyFile(ctx, dyn, mapper, fsys, file); err != nil {
			return fmt.Errorf("apply manifest %s: %w", file, err)
		}
	}
	return nil
}

func applyFile(ctx context.Context, dyn dynamic.Interface, mapper meta.RESTMapper, fsys fs.FS, file string) error {
	f, err := fsys.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	for d := yaml.NewYAMLOrJSONDecoder(f, 4096); ; {
		var o unstructured.Unstructured
		if err := d.Decode(&o.Object); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		if len(o.Object) == 0 {
			continue
		}
		kind := o.GroupVersionKind()
		mapping, err := mapper.RESTMapping(kind.GroupKind(), kind.Version)
		if err != nil {
			return err
		}
		data, err := o.MarshalJSON()
		if err != nil {
			return err
		}
		var client dynamic.ResourceInterface = dyn.Resource(mapping.Resource)
		if mapping.Scope.Name() == meta.RESTScopeNameNamespace {
			client = dyn.Resource(mapping.Resource).Namespace(o.GetNamespace())
		}
		force := true
		if _, err := client.Patch(ctx, o.GetName(), types.ApplyPatchType, data, metav1.PatchOptions{FieldManager: Manager, Force: &force}); err != nil {
			return fmt.Errorf("%s %s: %w", kind.Kind, o.GetName(), err)
		}
	}
}
