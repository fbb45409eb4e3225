package qemu

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"strings"

	"github.com/u-root/u-root/pkg/dt"
)

// Where QEMU puts a raw -kernel of a 32-bit ARM machine (KERNEL_LOAD_ADDR in its
// hw/arm/boot.c), and what of it our instructions leave before the image.
const (
	kernelAddress = 0x10000
	moveHead      = 0x40
)

// moved puts instructions around a raw image that bring it to the address it is linked
// for, and enter it there: QEMU's -kernel knows one address only, where a Pi's firmware has another.
// at must be lower, as copying goes upwards and the instructions lie after the image.
func moved(image []byte, at int) ([]byte, error) {
	if at >= kernelAddress {
		return nil, fmt.Errorf("move image to %#x: want an address below %#x", at, kernelAddress)
	}
	size := (len(image) + 3) &^ 3
	code := moveHead + size
	words := []uint32{
		0xe59f3018, // ldr r3, from
		0xe59f4018, // ldr r4, at
		0xe59f5018, // ldr r5, end
		0xe4936004, // 1: ldr r6, [r3], #4
		0xe4846004, // str r6, [r4], #4
		0xe1540005, // cmp r4, r5
		0x3afffffb, // blo 1b
		0xe59ff000, // ldr pc, at
		kernelAddress + moveHead, uint32(at), uint32(at + size),
	}
	out := binary.LittleEndian.AppendUint32(nil, 0xea000000|uint32(code-8)/4) // b code
	out = append(out, make([]byte, moveHead-len(out))...)
	out = append(out, image...)
	out = append(out, make([]byte, code-len(out))...)
	for _, w := range words {
		out = binary.LittleEndian.AppendUint32(out, w)
	}
	return out, nil
}

// changedTree sets properties of nodes, named by their paths, of a device tree (the
// Devicetree Specification, section 5): a text, a 32-bit number, true for one that is
// there without a value, or "&/path" for the phandle of a node.
func changedTree(tree []byte, changes map[string]map[string]any) ([]byte, error) {
	fdt, err := dt.ReadFDT(bytes.NewReader(tree))
	if err != nil {
		return nil, fmt.Errorf("change device tree: %w", err)
	}
	find := func(path string) (*dt.Node, error) {
		n := fdt.RootNode
		for name := range strings.SplitSeq(strings.Trim(path, "/"), "/") {
			child, ok := n.LookupChildByName(name)
			if !ok {
				return nil, fmt.Errorf("change device tree: it has no node %q", path)
			}
			n = child
		}
		return n, nil
	}
	for path, properties := range changes {
		node, err := find(path)
		if err != nil {
			return nil, err
		}
		for name, value := range properties {
			var p dt.Property
			switch v := value.(type) {
			case int:
				p = dt.PropertyU32(name, uint32(v))
			case bool:
				p = dt.Property{Name: name}
			case string:
				p = dt.PropertyString(name, v)
				if target, ok := strings.CutPrefix(v, "&"); ok {
					to, err := find(target)
					if err != nil {
						return nil, err
					}
					handle, ok := to.LookProperty("phandle")
					if !ok {
						return nil, fmt.Errorf("change device tree: node %q has no phandle", target)
					}
					p = dt.Property{Name: name, Value: handle.Value}
				}
			default:
				return nil, fmt.Errorf("change device tree: %s of %s: got %v, want a text, a number or true", name, path, value)
			}
			node.Update(p)
		}
	}
	var out bytes.Buffer
	if _, err := fdt.Write(&out); err != nil {
		return nil, fmt.Errorf("change device tree: %w", err)
	}
	return out.Bytes(), nil
}
