# Skerry: every command that people and CI type. See README.md.
SHELL := /bin/bash
.ONESHELL:
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

BOARD ?= rpi4
KUBE := $(shell awk '$$1=="k8s.io/kubernetes" {print $$2; exit}' go.mod)
KUBE_MAJOR_MINOR := $(subst ., ,$(patsubst v%,%,$(KUBE)))
V := k8s.io/component-base/version

# One set of flags for every build and test, so that they share one cache.
# Kubernetes reads its own version from the linker.
export GOFLAGS := -trimpath -buildvcs=false -tags=netgo,osusergo,sqlite_omit_load_extension '-ldflags=-s -w -X=$(V).gitVersion=$(KUBE) -X=$(V).gitMajor=$(word 1,$(KUBE_MAJOR_MINOR)) -X=$(V).gitMinor=$(word 2,$(KUBE_MAJOR_MINOR)) -X=$(V).gitTreeState=clean'
# vet checks the dependencies of what it checks: ten minutes for Kubernetes'.
GOTEST := go test -vet=off

.PHONY: help
help: ## says what can be made
	@awk -F':.*## ' '/^[a-z-]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

build/skerry: FORCE
	@go build -o $@ ./imagebuild/cmd/skerry

build/kubectl: go.mod
	@echo "building kubectl $(KUBE)"
	go build -o $@ k8s.io/kubernetes/cmd/kubectl

.PHONY: FORCE
FORCE:
