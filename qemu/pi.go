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

// Where processors are sent that nobody starts: a loop in the page that the device tree of each Pi
// keeps the kernel off (/memreserve/ in Linux's bcm283x.dtsi), after what QEMU has put there itself, and
// the mailboxes that its own loop looks at (write_smpboot in its hw/arm/raspi.c).
const (
	parkAddress = 0xf00
	mailbox3    = 0x4000008c // of processor 0; 16 bytes on for each further one
)

// literal has a register take a value.
type literal struct{ register, value uint32 }

// moved puts instructions around a raw image that bring it to the address it is linked
// for, and enter it there: QEMU's -kernel knows one address only, where a Pi's firmware has another.
// at must be lower, as copying goes upwards and the instructions lie after the image. Before that they
// send the processors in park to sleep: QEMU's loop for those that wait to be started reads a device
// without pause, and each time takes the lock that all of its devices share.
func moved(image []byte, at int, park []int) ([]byte, error) {
	if at >= kernelAddress {
		return nil, fmt.Errorf("move image to %#x: want an address below %#x", at, kernelAddress)
	}
	size := (len(image) + 3) &^ 3
	var code []any // instructions, and literals that become one
	if len(park) > 0 {
		code = append(code,
			literal{3, parkAddress},
			literal{4, 0xe320f003}, // 1: wfi
			uint32(0xe5834000),     // str r4, [r3]
			literal{4, 0xeafffffd}, // b 1b
			uint32(0xe5834004),     // str r4, [r3, #4]
		)
	}
	for _, processor := range park {
		code = append(code, literal{4, mailbox3 + 16*uint32(processor)}, uint32(0xe5843000)) // str r3, [r4]
	}
	code = append(code,
		literal{3, kernelAddress + moveHead}, literal{4, uint32(at)}, literal{5, uint32(at + size)},
		uint32(0xe4936004), // 1: ldr r6, [r3], #4
		uint32(0xe4846004), // str r6, [r4], #4
		uint32(0xe1540005), // cmp r4, r5
		uint32(0x3afffffb), // blo 1b
		literal{15, uint32(at)},
	)
	begin := moveHead + size
	out := binary.LittleEndian.AppendUint32(nil, 0xea000000|uint32(begin-8)/4) // b code
	out = append(out, make([]byte, moveHead-len(out))...)
	out = append(out, image...)
	out = append(out, make([]byte, begin-len(out))...)
	var pool []uint32
	for i, c := range code {
		word, _ := c.(uint32)
		if l, is := c.(literal); is {
			ahead := 4 * (len(code) + len(pool) - i - 2) // the processor's pc is two instructions further
			word = 0xe59f0000 | l.register<<12 | uint32(ahead)
			pool = append(pool, l.value)
		}
		out = binary.LittleEndian.AppendUint32(out, word)
	}
	for _, v := range pool {
		out = binary.LittleEndian.AppendUint32(out, v)
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
