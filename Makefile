# Few targets over `cargo xtask`. Wants Debian or Ubuntu and Rust 1.95; installs every package it needs besides.
# Run it as your own user: it asks sudo where root is needed.

SHELL := /bin/bash
.DEFAULT_GOAL := help
CARGO ?= cargo
XTASK := $(CARGO) xtask
SUDO := $(if $(filter-out 0,$(shell id -u)),sudo)
# Seconds for each fuzz target.
SECONDS_EACH ?= 60

.PHONY: help demo image test test-policy test-rotation test-vm test-all bench fuzz sanitize clean tools

help: ## Show this help
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 12
	@echo
	@echo 'variables:  TIERS=pure,bpf,netns,cri for test; CASES=words for test-policy; ROUNDS=, NODES= for test-rotation; KERNELS=6.1,6.12, STEP=words for test-vm;'
	@echo '            ARCH=, IMAGE=, LOAD=1 for image; NAME=clustermesh|clustermesh-largest|cni|datapath|memory|tunnel|tunnel-ablation|watch, JSON=file, QUICK=1 for bench; SECONDS_EACH=60 for fuzz'

demo: tools ## Build everything, start the lab and show the mesh at work
	@$(XTASK) deps --for demo
	@$(XTASK) demo

image: tools ## Build the container image, a file (ARCH=amd64|arm64, IMAGE=name:tag, LOAD=1 for docker or podman)
	@$(XTASK) deps --for build
	@$(XTASK) image $(if $(ARCH),--arch $(ARCH)) $(if $(IMAGE),--name $(IMAGE)) $(if $(LOAD),--load)

test: tools ## Run the tests, tier by tier (TIERS= chooses fewer)
	@$(XTASK) deps --for $(if $(TIERS),$(TIERS),pure,bpf,netns,cri)
	@$(XTASK) test $(if $(TIERS),--tiers $(TIERS))

test-policy: tools ## Run the truth table of network policy in the lab (CASES= words in their names)
	@$(XTASK) deps --for netns
	@$(XTASK) test-policy $(if $(CASES),--cases '$(CASES)')

test-rotation: tools ## Ten rotations of five nodes under traffic (ROUNDS=, NODES=)
	@$(XTASK) deps --for netns
	@$(XTASK) test-rotation $(if $(ROUNDS),--rounds $(ROUNDS)) $(if $(NODES),--nodes $(NODES))

test-vm: tools ## Run the data path's tests, demo, restarts, rotations and host traffic on Debian's kernels 6.1 and 6.12 in qemu
	@$(XTASK) deps --for vm
	@$(XTASK) vm $(if $(KERNELS),--kernel $(KERNELS)) $(if $(STEP),--step '$(STEP)')

test-all: test test-policy test-rotation test-vm fuzz ## Run the tests, the truth table, ten rotations, those in a VM and every fuzz target

bench: tools ## Run the bench NAME, rows also to the file JSON
	@test -n '$(NAME)' || { echo 'which bench? for example: make bench NAME=cni JSON=cni.json' >&2; exit 2; }
	@$(XTASK) deps --for bench
	@$(XTASK) bench $(NAME) $(if $(JSON),--json $(JSON)) $(if $(QUICK),-- --quick)

fuzz: tools ## Run every fuzz target for SECONDS_EACH
	@$(XTASK) deps --for fuzz
	@$(XTASK) fuzz --seconds $(SECONDS_EACH)

sanitize: tools ## Run the tests of the userspace tunnel with AddressSanitizer
	@$(XTASK) deps --for netns
	@$(XTASK) sanitize

clean: ## Remove what crashed labs left, and everything that was built
	@if command -v $(CARGO) >/dev/null && command -v cc >/dev/null; then $(XTASK) reap; fi
	@$(CARGO) clean

# What cargo needs before it can build xtask, which installs the rest.
tools:
	@command -v $(CARGO) >/dev/null || { echo 'cargo is not in PATH: install Rust 1.95 or later; under sudo it is lost, so run make as your own user' >&2; exit 1; }
	@if ! command -v cc >/dev/null; then \
		command -v apt-get >/dev/null || { echo 'cc is missing and this is neither Debian nor Ubuntu: install a C compiler' >&2; exit 1; }; \
		echo 'installing gcc, which cargo links with'; \
		$(SUDO) apt-get -qq update || true; \
		$(SUDO) env DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends --no-remove gcc libc6-dev; \
	fi
	@echo 'building xtask'
	@$(CARGO) build --locked --package xtask
