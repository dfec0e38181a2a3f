#!/usr/bin/env bash
# Builds Kubernetes, the CSI sidecars and helm once from their Go modules into a cache outside the checkout.
#   install-kube.sh <cache> [kubernetes|e2e-test|sidecars|helm|kubeadm|kind]...     the first four by default
# Each group has a directory that carries its versions (e2e/kube/versions.env), made whole or not at all.
# Two cores need about 25 minutes the first time and a second after that.
set -euo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)
# shellcheck source=../e2e/kube/versions.env
. "$here/e2e/kube/versions.env"
cache=$1
shift
[ $# -gt 0 ] || set -- kubernetes sidecars helm e2e-test
mkdir -p "$cache"
export CGO_ENABLED=0
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

kubernetes_dir=$cache/kubernetes-v$KUBERNETES
e2e_dir=$cache/kubernetes-e2e-v$KUBERNETES
sidecars_dir=$cache/csi-sidecars-p$EXTERNAL_PROVISIONER-a$EXTERNAL_ATTACHER-r$EXTERNAL_RESIZER-s$EXTERNAL_SNAPSHOTTER
helm_dir=$cache/helm-v$HELM
kubeadm_dir=$cache/kubeadm-v$KUBERNETES
kind_dir=$cache/kind-v$KIND

# One build of these at a time on a machine: a second caller waits and then finds everything there.
exec 9>"$cache/kube.lock"
flock 9

# Kubernetes keeps its libraries in its own repository, published under v0: a module that requires it has to say so.
replace_staging() {
    go mod download "k8s.io/kubernetes@v$KUBERNETES"
    sed -n '/use/,/)/s#.*staging/src/##p' "$(go env GOMODCACHE)/k8s.io/kubernetes@v$KUBERNETES/go.work" |
        while read -r module; do echo "replace $module => $module v0.${KUBERNETES#1.}"; done
}

# A module of our own that imports the programs, so that one dependency solution holds for all of them.
module() { # directory, name, packages...; go.mod's requirements on standard input
    local dir=$1 name=$2 package
    shift 2
    mkdir -p "$dir"
    { printf 'module lab/%s\ngo 1.26.0\n' "$name"; cat; replace_staging; } >"$dir/go.mod"
    { printf '//go:build tools\n\npackage tools\n\nimport (\n'; printf '\t_ "%s"\n' "$@"; echo ')'; } >"$dir/tools.go"
    (cd "$dir" && go mod tidy)
}

build() { # directory of the module, output directory, packages...
    local dir=$1 out=$2 package
    shift 2
    for package in "$@"; do
        echo "building $(basename "$package")"
        (cd "$dir" && go build -mod=mod -trimpath -ldflags "-s -w -X k8s.io/component-base/version.gitVersion=v$KUBERNETES" -o "$out/" "$package")
    done
}

k=k8s.io/kubernetes
kubernetes=("$k/cmd/kube-apiserver" "$k/cmd/kube-controller-manager" "$k/cmd/kube-scheduler" "$k/cmd/kubelet"
    "$k/cmd/kubectl" "$k/test/images/agnhost")
c=github.com/kubernetes-csi
# Of the version that this release of Kubernetes is tested with: its kubeadm asks etcd for health in a way that a distribution's older
# one does not know.
etcd=go.etcd.io/etcd/server/v3
sidecars=("$c/external-provisioner/v6/cmd/csi-provisioner" "$c/external-attacher/v4/cmd/csi-attacher"
    "$c/external-resizer/v2/cmd/csi-resizer" "$c/external-snapshotter/v8/cmd/csi-snapshotter"
    "$c/external-snapshotter/v8/cmd/snapshot-controller")

kubernetes_module() {
    [ -d "$work/kubernetes" ] || module "$work/kubernetes" kube "${kubernetes[@]}" "$k/cmd/kubeadm" "$etcd" "$k/test/e2e" <<<"require k8s.io/kubernetes v$KUBERNETES"
}

for group in "$@"; do
    case $group in
    kubernetes)
        dir=$kubernetes_dir
        [ -d "$dir" ] && continue
        kubernetes_module
        build "$work/kubernetes" "$dir.new" "${kubernetes[@]}"
        ;;
    e2e-test)
        dir=$e2e_dir
        [ -d "$dir" ] && continue
        kubernetes_module
        echo "building e2e.test"
        (cd "$work/kubernetes" && go test -c -mod=mod -trimpath -ldflags "-s -w" -o "$dir.new/e2e.test" "$k/test/e2e")
        ;;
    sidecars)
        dir=$sidecars_dir
        [ -d "$dir" ] && continue
        module "$work/sidecars" sidecars "${sidecars[@]}" <<EOF
require (
	$c/external-provisioner/v6 v$EXTERNAL_PROVISIONER
	$c/external-attacher/v4 v$EXTERNAL_ATTACHER
	$c/external-resizer/v2 v$EXTERNAL_RESIZER
	$c/external-snapshotter/v8 v$EXTERNAL_SNAPSHOTTER
	$c/external-snapshotter/client/v8 v$EXTERNAL_SNAPSHOTTER
)
replace $c/external-snapshotter/client/v8 => $c/external-snapshotter/client/v8 v$EXTERNAL_SNAPSHOTTER
EOF
        build "$work/sidecars" "$dir.new" "${sidecars[@]}"
        # The VolumeSnapshot definitions that a cluster with snapshots needs.
        mkdir -p "$dir.new/crd"
        cp "$(go env GOMODCACHE)/$c/external-snapshotter/client/v8@v$EXTERNAL_SNAPSHOTTER/config/crd/"*.yaml "$dir.new/crd/"
        chmod -R u+w "$dir.new/crd"
        ;;
    helm)
        dir=$helm_dir
        [ -d "$dir" ] && continue
        echo "building helm"
        GOBIN=$dir.new go install -trimpath -ldflags "-s -w" "helm.sh/helm/v4/cmd/helm@v$HELM"
        ;;
    kubeadm)
        dir=$kubeadm_dir
        [ -d "$dir" ] && continue
        kubernetes_module
        build "$work/kubernetes" "$dir.new" "$k/cmd/kubeadm"
        echo "building etcd"
        # By itself it would be named after its module, `server`.
        (cd "$work/kubernetes" && go build -mod=mod -trimpath -ldflags "-s -w" -o "$dir.new/etcd" "$etcd")
        ;;
    kind)
        dir=$kind_dir
        [ -d "$dir" ] && continue
        echo "building kind"
        GOBIN=$dir.new go install -trimpath -ldflags "-s -w" "sigs.k8s.io/kind@v$KIND"
        ;;
    *)
        echo "unknown group: $group" >&2
        exit 2
        ;;
    esac
    mv "$dir.new" "$dir"
done
