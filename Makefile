# Two commands do everything on a fresh Debian 12 machine with Rust and Go, as root: `make demo` and `make test`.
SHELL := /bin/bash
export STORAGELINK_CACHE ?= $(HOME)/.cache/storagelink-csi
# Kernel of the suites: empty for the distribution's own, 6.12 for the newest of that line in bookworm-backports.
KERNEL ?=
LAB := target/debug/lab $(if $(KERNEL),--kernel $(KERNEL))
SECONDS_EACH ?= 5
HELM = $(shell . e2e/kube/versions.env; echo $(STORAGELINK_CACHE)/helm-v$$HELM/helm)
DENY := $(STORAGELINK_CACHE)/cargo-deny-0.20.2/bin/cargo-deny

.DEFAULT_GOAL := help
.PHONY: help deps build programs fmt lint unit fuzz check lab suites kube chart manifest images e2e-external e2e-kind e2e-kind-down e2e-kind-lab demo demo-kube bench-kube bench-failover bench-scale bench-stage test clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9 -]+:.*## / { printf "  %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

deps: ## install missing Debian packages
	@hack/install-deps.sh

build: deps ## build every crate and program
	cargo build --locked --workspace --all-targets

fmt: ## format the sources
	cargo fmt --all
	cargo fmt --manifest-path fuzz/Cargo.toml

lint: deps ## rustfmt, clippy, licences and bans of dependencies
	cargo fmt --all --check
	cargo fmt --manifest-path fuzz/Cargo.toml --check
	cargo clippy --locked --workspace --all-targets -- -D warnings
	@hack/install-tools.sh $(STORAGELINK_CACHE) cargo-deny
	cargo fetch --locked
	$(DENY) --offline check --hide-inclusion-graph bans licenses sources

unit: deps ## pure and simulated-host tests
	cargo test --locked --workspace
	[ "$$(id -u)" != 0 ] || cargo test --locked --workspace --lib -- --ignored

fuzz: deps ## every parser on random input, SECONDS_EACH=5 for each
	hack/fuzz.sh $(SECONDS_EACH)

check: lint unit fuzz ## everything that needs no lab

lab: build suites ## the suites on real kernels

suites: # of what is built: cargo is not asked
	@hack/install-tools.sh $(STORAGELINK_CACHE) csi-sanity
	$(LAB) suite all

kube: build images ## every suite on a Kubernetes cluster of guests, and the chosen part of Kubernetes' own storage suite
	@hack/install-kube.sh $(STORAGELINK_CACHE)
	$(LAB) kube all

chart: build ## what the chart renders and refuses; deploy/kubernetes is current
	@hack/install-kube.sh $(STORAGELINK_CACHE) helm
	$(HELM) lint charts/storagelink-csi --values deploy/kubernetes/values.yaml
	hack/generate-manifest.sh $(HELM) --check
	cargo test --locked --workspace --test chart -- --include-ignored

manifest: ## render deploy/kubernetes from the chart
	@hack/install-kube.sh $(STORAGELINK_CACHE) helm
	hack/generate-manifest.sh $(HELM)

programs: deps ## the programs of the images, release build
	cargo build --locked --release --bins -p storagelink-csi -p storagelinkd -p storagelink-multipath

images: programs ## build the images with an own Docker engine; prints their sizes
	@hack/build-images.sh $(STORAGELINK_CACHE) target/images

e2e-kind-lab: deps images ## the walk of e2e-kind in a guest that is its Docker host, with nothing pulled; into docs/conformance.md
	cargo build --locked --release --bins -p storagelink-e2e
	@hack/install-kube.sh $(STORAGELINK_CACHE) kubernetes sidecars helm kubeadm kind
	disk=$$(hack/build-kind-disk.sh $(STORAGELINK_CACHE) target/images) && $(subst debug,release,$(LAB)) kind "$$disk"

demo-kube: build images ## a Kubernetes cluster of guests, the chart, a claim, a pod, a cut fabric: to watch
	@hack/install-kube.sh $(STORAGELINK_CACHE) kubernetes sidecars helm
	$(LAB) kube demo

bench-kube: build images ## times and memory on that cluster, into docs/benchmarks.md
	@hack/install-kube.sh $(STORAGELINK_CACHE) kubernetes sidecars helm
	$(LAB) kube bench

bench-failover bench-scale bench-stage: deps ## figures beside multipathd and of 500 maps, into docs/benchmarks.md
	cargo build --locked --release --bins -p storagelink-csi -p storagelinkd -p storagelink-multipath -p storagelink-e2e
	target/release/lab bench $(@:bench-%=%) $(BENCH)

e2e-external: build images ## all of Kubernetes' external storage suite; writes docs/conformance.md (hours)
	@hack/install-kube.sh $(STORAGELINK_CACHE)
	$(LAB) kube external-all

e2e-kind: ## on this host: a kind cluster, a container that is the array, the chart, a cut fabric; KEEP=1 leaves it running
	cargo build --locked --release --bins -p storagelink-csi -p storagelinkd -p storagelink-multipath -p storagelink-e2e
	target/release/e2e-kind walk

e2e-kind-down: ## remove everything that e2e-kind makes
	[ -x target/release/e2e-kind ] || cargo build --locked --release -p storagelink-e2e --bin e2e-kind
	target/release/e2e-kind down

demo: deps ## the main job on a real kernel, to watch
	cargo build --locked --workspace
	$(LAB) demo

# Clippy and the images' programs get what the suites leave of the processors: those wait for seconds and more, again and again.
test: unit fuzz chart ## everything: lint, unit, simulated host, the chart, suites in the lab and on a cluster
	chrt --idle 0 $(MAKE) programs lint & beside=$$!; trap "kill $$beside 2>/dev/null" EXIT; $(MAKE) suites && wait $$beside
	$(MAKE) kube

clean: ## remove what was built (the cache outside the checkout stays)
	cargo clean
