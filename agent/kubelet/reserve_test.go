package kubelet

import (
	"maps"
	"testing"

	"k8s.io/kubernetes/cmd/kubelet/app/options"
	"k8s.io/kubernetes/pkg/kubelet/eviction"
)

// What skerry.yaml keeps from pods gets to the kubelet, which must find it
// right; more than there is becomes what there is to keep.
func TestReserveFrom(t *testing.T) {
	const gi = 1 << 30
	for _, tt := range []struct {
		name                       string
		cpu                        int
		storage                    int64
		wantCPU, wantNode, wantImg string
	}{
		{"nothing", 0, 0, "", "10%", "15%"},
		{"both", 200, gi, "200m", "1073741824", "1073741824"},
		{"more than there is", 9000, 100 * gi, "3200m", "2147483648", "2147483648"},
	} {
		kc, err := options.NewKubeletConfiguration()
		if err != nil {
			t.Fatal(err)
		}
		kc.SystemReserved, kc.EvictionHard = map[string]string{}, maps.Clone(eviction.DefaultEvictionHard)
		reserveFrom(kc, Config{ReservedCPU: tt.cpu, ReservedStorage: tt.storage}, 4, 4*gi)
		if cpu, node, img := kc.SystemReserved["cpu"], kc.EvictionHard["nodefs.available"], kc.EvictionHard["imagefs.available"]; cpu != tt.wantCPU || node != tt.wantNode || img != tt.wantImg {
			t.Errorf("%s: keeps %q, %q, %q; want %q, %q, %q", tt.name, cpu, node, img, tt.wantCPU, tt.wantNode, tt.wantImg)
		}
		if _, err := eviction.ParseThresholdConfig(nil, kc.EvictionHard, nil, nil, nil); err != nil {
			t.Errorf("%s: the kubelet does not take it: %v", tt.name, err)
		}
	}
}
