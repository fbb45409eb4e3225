// Package e2e tests the product as its users meet it: the image that is
// flashed, in QEMU, with the upstream kubectl and a real registry. It holds
// tests only.
//
// The images are those of make image, with their descriptions (.json) beside them:
// build/BOARD/skerry-BOARD.img. make test builds the ones it needs first.
package e2e
