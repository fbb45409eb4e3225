package kubelet

import (
	"maps"
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"skerry.internal/skerry/agent/config"
)

// A node through the versions of its skerry.yaml: what came from the file goes
// with it, what others put there stays.
func TestDescribe(t *testing.T) {
	added := metav1.Now()
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"theirs": "1"}}}
	n.Spec.Taints = []corev1.Taint{{Key: "node.kubernetes.io/not-ready", Effect: "NoSchedule", TimeAdded: &added}}
	for i, tt := range []struct {
		labels  map[string]string
		taints  []config.Taint
		want    map[string]string
		taints_ []string
	}{
		{map[string]string{"a": "1", "b": "2"}, []config.Taint{{Key: "dark", Value: "yes", Effect: "NoSchedule"}},
			map[string]string{"theirs": "1", "a": "1", "b": "2"}, []string{"node.kubernetes.io/not-ready:NoSchedule", "dark=yes:NoSchedule"}},
		{map[string]string{"b": "3"}, []config.Taint{{Key: "dark", Value: "no", Effect: "NoSchedule"}, {Key: "cold", Effect: "NoExecute"}},
			map[string]string{"theirs": "1", "b": "3"}, []string{"node.kubernetes.io/not-ready:NoSchedule", "dark=no:NoSchedule", "cold:NoExecute"}},
		{nil, nil, map[string]string{"theirs": "1"}, []string{"node.kubernetes.io/not-ready:NoSchedule"}},
	} {
		if !describe(n, tt.labels, tt.taints) {
			t.Errorf("%d: describe() = false; want a change", i)
		}
		if describe(n, tt.labels, tt.taints) {
			t.Errorf("%d: describe() again = true; a node that is right must not be written", i)
		}
		var taints []string
		for _, x := range n.Spec.Taints {
			taints = append(taints, config.Taint{Key: x.Key, Value: x.Value, Effect: string(x.Effect)}.String())
		}
		if !maps.Equal(n.Labels, tt.want) || !slices.Equal(taints, tt.taints_) {
			t.Errorf("%d: labels %v, taints %v; want %v, %v", i, n.Labels, taints, tt.want, tt.taints_)
		}
		if n.Spec.Taints[0].TimeAdded != &added {
			t.Errorf("%d: another's taint was made anew", i)
		}
	}
	n.Annotations[configured] = "{"
	describe(n, nil, nil)
	if n.Labels["theirs"] != "1" {
		t.Error("a broken annotation costs a label")
	}
}
