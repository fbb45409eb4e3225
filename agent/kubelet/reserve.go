package kubelet

import (
	"fmt"
	"runtime"
	"strconv"

	"golang.org/x/sys/unix"
	"k8s.io/kubernetes/pkg/kubelet/apis/config"
)

// reserveMore keeps processor time and room on STATE from pods, as far as this
// machine has them: a kubelet that is to keep more than there is does not start.
func reserveMore(kc *config.KubeletConfiguration, c Config) {
	var fs unix.Statfs_t
	if err := unix.Statfs(c.RootDir, &fs); err != nil {
		fs = unix.Statfs_t{} // then nothing is kept; the kubelet itself will say what is wrong with its folder
	}
	reserveFrom(kc, c, runtime.NumCPU(), int64(fs.Blocks)*int64(fs.Bsize))
}

// reserveFrom is reserveMore for a machine with cpus processors and size bytes of STATE.
func reserveFrom(kc *config.KubeletConfiguration, c Config, cpus int, size int64) {
	if milli := min(c.ReservedCPU, cpus*1000/5*4); milli > 0 {
		kc.SystemReserved["cpu"] = fmt.Sprintf("%dm", milli)
	}
	// An eviction threshold is taken off what pods can ask for as well. Images
	// lie on the same file system.
	if room := min(c.ReservedStorage, size/2); room > 0 {
		for _, signal := range []string{"nodefs.available", "imagefs.available"} {
			kc.EvictionHard[signal] = strconv.FormatInt(room, 10)
		}
	}
}
