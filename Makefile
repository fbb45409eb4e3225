# Skerry: every command that people and CI type. See README.md.
SHELL := /bin/bash
.ONESHELL:
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

BOARD ?= rpi4
BOARDS := $(patsubst boards/%/board.yaml,%,$(wildcard boards/*/board.yaml))
# The machine of make run, and its folder below build.
NAME ?= run
KUBE := $(shell awk '$$1=="k8s.io/kubernetes" {print $$2; exit}' go.mod)
KUBE_MAJOR_MINOR := $(subst ., ,$(patsubst v%,%,$(KUBE)))
comma := ,
V := k8s.io/component-base/version

# One set of flags for every build and test, so that they share one cache.
# Kubernetes reads its own version from the linker.
# Debian may ship an older Go; it fetches the release that go.mod names.
export GOTOOLCHAIN ?= auto
export GOFLAGS := -trimpath -buildvcs=false -tags=netgo,osusergo,sqlite_omit_load_extension '-ldflags=-s -w -X=$(V).gitVersion=$(KUBE) -X=$(V).gitMajor=$(word 1,$(KUBE_MAJOR_MINOR)) -X=$(V).gitMinor=$(word 2,$(KUBE_MAJOR_MINOR)) -X=$(V).gitTreeState=clean'
# vet checks the dependencies of what it checks: ten minutes for Kubernetes'.
GOTEST := go test -vet=off

.PHONY: help
help: ## says what can be made
	@awk -F':.*## ' '/^[a-z0-9-]+:.*## / {printf "make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# Tests that need a virtual machine run one at a time. The recipes call go list
# themselves: in $(shell) its failure would go unseen, and less would be tested.
VM_PACKAGES := ./agent/cmd/init ./qemu/...
NO_VM := grep -v -e /agent/cmd/init$$ -e /skerry/qemu
# The packages by name as they are compiled, where somebody watches.
SHOW := $(if $(MAKE_TERMERR),-v)

.PHONY: host
host:
	@.ci/host-packages

build/skerry: FORCE | host
	@go build $(SHOW) -o $@ ./imagebuild/cmd/skerry

build/kubectl: go.mod | host
	@echo "building kubectl $(KUBE)"
	go build $(SHOW) -o $@ k8s.io/kubernetes/cmd/kubectl

.PHONY: image
image: build/skerry ## BOARD=rpi4: the image, its compressed form and what is in it, in build/BOARD
	@build/skerry image build --board $(BOARD) -o build/$(BOARD)

.PHONY: boards
boards: build/skerry ## lists the boards
	@build/skerry boards

.PHONY: run
run: image build/kubectl ## BOARD=rpi4: boots that image in QEMU until its node is Ready
	@export SKERRY_HOME=$(CURDIR)/build/$(NAME)
	[ -d build/$(NAME)/clusters/run ] || build/skerry cluster create run >/dev/null
	build/skerry qemu up --name $(NAME) --image build/$(BOARD)/skerry-$(BOARD).img --cluster run --detach
	cp build/qemu/$(NAME)/kubeconfig build/$(NAME)/kubeconfig
	build/kubectl --kubeconfig build/$(NAME)/kubeconfig get nodes
	echo "now type: export KUBECONFIG=$(CURDIR)/build/$(NAME)/kubeconfig SKERRY_HOME=$(CURDIR)/build/$(NAME) PATH=$(CURDIR)/build:\$$PATH"
	echo "          kubectl get pods -A      (make stop ends the machine)"

.PHONY: stop
stop: build/skerry ## ends what make run started
	@build/skerry qemu down $(NAME)

.PHONY: test
test: build/skerry build/kubectl test-armv7 ## what CI runs: unit tests, and the image in QEMU
	@for board in rpi4 rpi3 rpi2 bananapi-m2-ultra; do build/skerry image build --board $$board -o build/$$board; done
	packages=$$(go list ./...)
	$(GOTEST) -timeout 20m $$($(NO_VM) <<<"$$packages")
	$(GOTEST) -p 1 -timeout 80m $(VM_PACKAGES)

# Our own programs' packages as 32-bit ones, under QEMU's user emulation. Those that start
# Kubernetes or a virtual machine are left to the machines, and by name what this emulation
# lacks: MCAST_JOIN_GROUP and IP_PKTINFO, without which discovery hears nothing ("Unsupported
# setsockopt level=0 optname=42", "Unsupported target ancillary data: 0/8" with QEMU_LOG=unimp),
# and starting the test's own program again ("exec format error"). The limit of time of
# TestParseIsLinear is for real processors.
ARMV7 := ./agent/... ./boards ./rootfs
ARMV7_SKIP := TestParseIsLinear \
	TestOneName TestTwoNames TestChanges TestNoAddresses TestTwoCables TestLeaks \
	TestDHCP TestKernel TestStopAndRestart TestStopAtTheSameTime TestReport TestWakeStopped TestRestartAfterKill TestDiesAtOnce \
	TestStartDeadline TestExtendStart TestWatchdog TestStubbornIsKilled TestOthersMayNotSpeakForIt TestMainPID TestOrphan \
	TestOutput TestOutputKeepsReading TestProbe
space := $(subst ,, )
.PHONY: test-armv7
test-armv7: | host ## the unit tests of what runs on a board, as armv7 programs
	@packages=$$(GOARCH=arm go list $(ARMV7) | grep -v -e /agent/cmd/ -e /agent/controlplane$$ -e /agent/kubelet$$ -e /agent/proxy$$)
	GOARCH=arm GOARM=7 CGO_ENABLED=1 CC=arm-linux-gnueabihf-gcc $(GOTEST) -timeout 20m -exec 'qemu-arm -L /usr/arm-linux-gnueabihf' -skip '^($(subst $(space),|,$(strip $(ARMV7_SKIP))))$$' $$packages

.PHONY: test-all
# The tag brings in the tests that are too long for CI.
test-all: export GOFLAGS := $(subst -tags=,-tags=full$(comma),$(GOFLAGS))
test-all: build/skerry build/kubectl test-armv7 ## everything with full counts; resumable; leaves build/test-all.json
	@for board in $(BOARDS); do build/skerry image build --board $$board -o build/$$board; done
	[ -e build/test-all.json ] || cp docs/test-all.json build/ 2>/dev/null || true
	packages=$$(go list ./...)
	machines=$$(go list $(VM_PACKAGES))
	SKERRY_TEST_ALL=1 go run ./qemu/cmd/testall -o build/test-all.json -whole $$($(NO_VM) <<<"$$packages") $$machines

.PHONY: measure
measure: image build/kubectl ## the figures of docs/measurements.md; takes half an hour
	@$(GOTEST) -run '^$$' -bench 'OneLine' -benchtime 3x -timeout 1h -v ./imagebuild/cmd/skerry
	$(GOTEST) -run '^$$' -bench 'Runtimes|Idle' -benchtime 1x -timeout 2h -v ./qemu/e2e

.PHONY: lock
lock: build/skerry ## resolves the Debian packages anew and rewrites rootfs/lock-*.json
	@build/skerry lock

.PHONY: clean
clean: ## removes build/
	@rm -rf build

.PHONY: FORCE
FORCE:
