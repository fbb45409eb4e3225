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
