package kubelet

import (
	"encoding/json"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

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

// While others write to the Node, what is read is out of date again and again.
func TestDescribeUntilNobodyElseWrites(t *testing.T) {
	const others = 6
	written := 0
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		answer := any(&corev1.Node{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Node"}, ObjectMeta: metav1.ObjectMeta{Name: "barn"}})
		if r.Method == http.MethodPut {
			if written++; written <= others {
				refused := apierrors.NewConflict(schema.GroupResource{Resource: "nodes"}, "barn", nil)
				w.WriteHeader(http.StatusConflict)
				answer = refused.Status()
			}
		}
		json.NewEncoder(w).Encode(answer)
	}))
	defer srv.Close()
	kubeconfig := filepath.Join(t.TempDir(), "kubeconfig")
	if err := os.WriteFile(kubeconfig, []byte(`{"clusters":[{"name":"x","cluster":{"server":"`+srv.URL+`"}}],"contexts":[{"name":"x","context":{"cluster":"x"}}],"current-context":"x"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Describe(t.Context(), kubeconfig, "barn", map[string]string{"a": "1"}, nil); err != nil || written != others+1 {
		t.Errorf("Describe() = %v after %d tries; want none after %d", err, written, others+1)
	}
}
