package kubelet

import (
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// What the kubelet of an earlier start said must not count.
func TestReadySince(t *testing.T) {
	old, now := metav1.NewTime(time.Unix(1.8e9, 0)), metav1.NewTime(time.Unix(1.8e9+60, 0))
	node := func(s corev1.ConditionStatus, at metav1.Time) *corev1.Node {
		return &corev1.Node{Status: corev1.NodeStatus{Conditions: []corev1.NodeCondition{
			{Type: corev1.NodeDiskPressure, Status: corev1.ConditionTrue, LastHeartbeatTime: now},
			{Type: corev1.NodeReady, Status: s, LastHeartbeatTime: at}}}}
	}
	for _, tt := range []struct {
		name   string
		node   *corev1.Node
		before metav1.Time
		want   bool
	}{
		{"just registered", &corev1.Node{}, metav1.Time{}, false},
		{"first report", node(corev1.ConditionTrue, now), metav1.Time{}, true},
		{"left from before", node(corev1.ConditionTrue, old), old, false},
		{"reported again", node(corev1.ConditionTrue, now), old, true},
		{"after the clock went back", node(corev1.ConditionTrue, old), now, true},
		{"not ready", node(corev1.ConditionFalse, now), old, false},
	} {
		if got := ReadySince(tt.before)(tt.node); got != tt.want {
			t.Errorf("%s: ReadySince() = %v; want %v", tt.name, got, tt.want)
		}
	}
}

// What was Ready before a boot is not; after a restart alone it stays.
func TestUnready(t *testing.T) {
	then, now := metav1.NewTime(time.Unix(1.8e9, 0)), metav1.NewTime(time.Unix(1.8e9+60, 0))
	node := func(s corev1.ConditionStatus) *corev1.Node {
		return &corev1.Node{Status: corev1.NodeStatus{NodeInfo: corev1.NodeSystemInfo{BootID: "one"}, Conditions: []corev1.NodeCondition{
			{Type: corev1.NodeDiskPressure, Status: corev1.ConditionTrue, LastTransitionTime: then},
			{Type: corev1.NodeReady, Status: s, LastHeartbeatTime: then, LastTransitionTime: then}}}}
	}
	for _, tt := range []struct {
		name, boot string
		node       *corev1.Node
		want       bool
	}{
		{"the same boot", "one", node(corev1.ConditionTrue), false},
		{"another boot", "two", node(corev1.ConditionTrue), true},
		{"another boot, not Ready before", "two", node(corev1.ConditionFalse), false},
		{"another boot, nothing known", "two", node(corev1.ConditionUnknown), false},
		{"registered and never reported", "two", &corev1.Node{}, false},
	} {
		if got := unready(tt.node, tt.boot, now); got != tt.want {
			t.Errorf("%s: unready() = %v; want %v", tt.name, got, tt.want)
		}
		ready, at := readiness(tt.node)
		if tt.want && (ready || !at.Equal(&then) || !tt.node.Status.Conditions[1].LastTransitionTime.Equal(&now)) {
			t.Errorf("%s: then %+v; want it not Ready since now, and the last report's time", tt.name, tt.node.Status.Conditions[1])
		}
		if len(tt.node.Status.Conditions) > 0 && tt.node.Status.Conditions[0].Status != corev1.ConditionTrue {
			t.Errorf("%s: another condition was changed", tt.name)
		}
	}
}
