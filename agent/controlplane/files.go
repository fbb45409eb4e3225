package controlplane

import (
	"fmt"
	"net"
	"path/filepath"
	"slices"
	"time"

	"skerry.internal/skerry/agent/kubeconfig"
	"skerry.internal/skerry/agent/pki"
)

// Node says who the API server is to its clients.
type Node struct {
	Name      string   // also valid as Name.local
	Others    []string // names that it answers to in .local where another node has its own
	Addresses []net.IP // of this machine
	ServiceIP net.IP   // of the service "kubernetes"
}

// EnsureFiles keeps all that the control plane needs in dir valid: files that
// caFile (the cluster's root) and a, the intermediate in signing.crt and
// signing.key, vouch for. server is the API server's URL for its own programs.
// changed says that a certificate was made anew that programs read at their start
// only.
func EnsureFiles(dir, caFile string, a *pki.Authority, n Node, server string, now time.Time) (_ Files, changed bool, err error) {
	path := func(name string) string { return filepath.Join(dir, name) }
	f := Files{
		CACert:      caFile,
		SigningCert: path("signing.crt"), SigningKey: path("signing.key"),
		ServingCert: path("apiserver.crt"), ServingKey: path("apiserver.key"),
		KubeletClientCert: path("apiserver-kubelet-client.crt"), KubeletClientKey: path("apiserver-kubelet-client.key"),
		FrontProxyCA:   path("front-proxy-ca.crt"),
		FrontProxyCert: path("front-proxy-client.crt"), FrontProxyKey: path("front-proxy-client.key"),
		ServiceAccountKey:    path("service-account.key"),
		ControllerKubeconfig: path("controller-manager.kubeconfig"), SchedulerConfig: path("scheduler.kubeconfig"),
	}
	if err := a.Save(dir, "signing"); err != nil {
		return f, false, err
	}
	if err := pki.EnsureKey(f.ServiceAccountKey); err != nil {
		return f, false, err
	}
	// The front proxy's authority must differ from the cluster's: whoever holds
	// a certificate of the former may claim to be any user.
	front, err := pki.LoadAuthority(dir, "front-proxy-ca")
	if err != nil || now.Before(front.Cert.NotBefore) || now.After(front.Cert.NotAfter.Add(-pki.LeafLife)) {
		if front, err = pki.NewRoot("the front proxy", now); err != nil {
			return f, false, err
		}
		if err := front.Save(dir, "front-proxy-ca"); err != nil {
			return f, false, err
		}
		changed = true
	}
	names := []string{"kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local", "localhost", n.Name, n.Name + ".local"}
	for _, other := range n.Others {
		names = append(names, other, other+".local")
	}
	ips := append([]net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback, n.ServiceIP}, n.Addresses...)
	for _, l := range []struct {
		name string
		by   *pki.Authority
		leaf pki.Leaf
	}{
		{"apiserver", a, pki.Leaf{CommonName: "kube-apiserver", Server: true, IPs: ips, DNSNames: slices.Compact(names)}},
		{"apiserver-kubelet-client", a, pki.Leaf{CommonName: "kube-apiserver-kubelet-client", Organization: []string{"system:masters"}}},
		{"front-proxy-client", front, pki.Leaf{CommonName: "front-proxy-client"}},
		{"controller-manager", a, pki.Leaf{CommonName: "system:kube-controller-manager"}},
		{"scheduler", a, pki.Leaf{CommonName: "system:kube-scheduler"}},
	} {
		made, err := l.by.Ensure(dir, l.name, l.leaf, now)
		changed = changed || made && l.name != "apiserver" // it reads its own again by itself
		if err != nil {
			return f, false, fmt.Errorf("certificate %s: %w", l.name, err)
		}
	}
	for name, file := range map[string]string{"controller-manager": f.ControllerKubeconfig, "scheduler": f.SchedulerConfig} {
		if err := kubeconfig.Write(file, server, caFile, path(name+".crt"), path(name+".key")); err != nil {
			return f, false, err
		}
	}
	return f, changed, nil
}
