#!/usr/bin/env bash
# Builds the test tools once into a cache outside the checkout, each in a directory that carries its version.
#   install-tools.sh <cache> <tool>...     tools: csi-sanity, cargo-deny
set -euo pipefail
csi_sanity=v5.5.0
cargo_deny=0.20.2

cache=$1
shift
mkdir -p "$cache"
for tool in "$@"; do
    case $tool in
    csi-sanity)
        dir=$cache/csi-sanity-$csi_sanity
        [ -x "$dir/csi-sanity" ] && continue
        GOBIN=$dir.new go install "github.com/kubernetes-csi/csi-test/v5/cmd/csi-sanity@$csi_sanity"
        ;;
    cargo-deny)
        dir=$cache/cargo-deny-$cargo_deny
        [ -x "$dir/bin/cargo-deny" ] && continue
        cargo install --quiet --locked --root "$dir.new" "cargo-deny@$cargo_deny"
        ;;
    *)
        echo "unknown tool: $tool" >&2
        exit 2
        ;;
    esac
    rm -rf "$dir"
    mv "$dir.new" "$dir"
done
