// Package e2e tests the product as its users meet it: the image that is
// flashed, in QEMU, with the upstream kubectl and a real registry. It holds
// tests only.
//
// The image is $SKERRY_IMAGE, with its description (.json) beside it, or
// build/rpi4/skerry-rpi4.img; make test builds it first.
package e2e
