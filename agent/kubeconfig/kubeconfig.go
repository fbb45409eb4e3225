// Package kubeconfig writes the files with which the programs of a node find
// and address the API server.
package kubeconfig

import (
	"fmt"
	"os"
	"path/filepath"

	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/clientcmd/api"

	"skerry.internal/skerry/agent/atomicfile"
)

// Write makes a kubeconfig (mode 0600) that names the certificates by path, so
// that clients see a renewed one without a restart.
func Write(path, server, caFile, certFile, keyFile string) error {
	c := api.NewConfig()
	c.Clusters["skerry"] = &api.Cluster{Server: server, CertificateAuthority: caFile}
	c.AuthInfos["node"] = &api.AuthInfo{ClientCertificate: certFile, ClientKey: keyFile}
	c.Contexts["node"] = &api.Context{Cluster: "skerry", AuthInfo: "node"}
	c.CurrentContext = "node"
	data, err := clientcmd.Write(*c)
	if err != nil {
		return fmt.Errorf("encode kubeconfig: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return fmt.Errorf("make directory of kubeconfig: %w", err)
	}
	if err := atomicfile.WriteFile(path, data, 0o600); err != nil {
		return fmt.Errorf("write kubeconfig %q: %w", path, err)
	}
	return nil
}
