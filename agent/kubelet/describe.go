package kubelet

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/util/retry"

	"skerry.internal/skerry/agent/config"
)

// configured is the annotation that names the labels and taints which came from
// skerry.yaml, so that those which left it can be taken away again. What others
// have put on the Node is left alone.
const configured = "skerry.internal/configured"

// Describe gives the Node object the labels and taints of skerry.yaml. kubelet
// would set them when it makes the object and never again.
func Describe(ctx context.Context, kubeconfig, name string, labels map[string]string, taints []config.Taint) error {
	client, err := connect(kubeconfig)
	if err != nil {
		return err
	}
	// kubelet and controllers write to a new Node often, and on a slow board a try takes
	// seconds: retry's own four ended in conflicts, and the node showed an error and
	// waited for up to a minute.
	return retry.RetryOnConflict(wait.Backoff{Duration: 100 * time.Millisecond, Jitter: 0.5, Steps: 100}, func() error {
		n, err := client.CoreV1().Nodes().Get(ctx, name, metav1.GetOptions{})
		if err != nil {
			return fmt.Errorf("read node %q: %w", name, err)
		}
		if !describe(n, labels, taints) {
			return nil
		}
		_, err = client.CoreV1().Nodes().Update(ctx, n, metav1.UpdateOptions{FieldManager: "skerry"})
		return err // as it is: retry looks for a conflict
	})
}

type ours struct {
	Labels []string `json:"labels,omitempty"`
	Taints []string `json:"taints,omitempty"` // key:effect, which is what tells two apart
}

// describe changes n and says whether it did.
func describe(n *corev1.Node, labels map[string]string, taints []config.Taint) bool {
	before := n.DeepCopy()
	var old, now ours
	json.Unmarshal([]byte(n.Annotations[configured]), &old) // nothing, or what somebody broke: then nothing is taken away
	for _, k := range old.Labels {
		if _, stays := labels[k]; !stays {
			delete(n.Labels, k)
		}
	}
	if n.Labels == nil {
		n.Labels = map[string]string{}
	}
	maps.Copy(n.Labels, labels)
	now.Labels = slices.Sorted(maps.Keys(labels))

	want := map[string]corev1.Taint{}
	for _, t := range taints {
		id := t.Key + ":" + t.Effect
		if _, twice := want[id]; !twice {
			now.Taints = append(now.Taints, id)
		}
		want[id] = corev1.Taint{Key: t.Key, Value: t.Value, Effect: corev1.TaintEffect(t.Effect)}
	}
	var kept []corev1.Taint
	for _, t := range n.Spec.Taints {
		id := t.Key + ":" + string(t.Effect)
		w, wanted := want[id]
		switch {
		case wanted && w.Value == t.Value:
			kept = append(kept, t) // with the time it was added
			delete(want, id)
		case !wanted && !slices.Contains(old.Taints, id):
			kept = append(kept, t)
		}
	}
	for _, id := range now.Taints {
		if w, missing := want[id]; missing {
			kept = append(kept, w)
		}
	}
	n.Spec.Taints = kept
	text, _ := json.Marshal(now) // strings always can be
	if n.Annotations == nil {
		n.Annotations = map[string]string{}
	}
	n.Annotations[configured] = string(text)
	return !maps.Equal(before.Labels, n.Labels) || !maps.Equal(before.Annotations, n.Annotations) || !slices.EqualFunc(before.Spec.Taints, kept, func(a, b corev1.Taint) bool { return a.MatchTaint(&b) && a.Value == b.Value })
}
