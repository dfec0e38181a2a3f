#!/usr/bin/env bash
# Renders deploy/kubernetes/storagelink-csi.yaml from the chart; with --check it only says whether the file is current.
#   generate-manifest.sh <helm> [--check]
set -euo pipefail
cd "$(dirname "$0")/.."
file=deploy/kubernetes/storagelink-csi.yaml
render() {
    echo '# Rendered from charts/storagelink-csi with deploy/kubernetes/values.yaml by `make manifest`. Do not edit.'
    cat <<'NAMESPACE'
---
apiVersion: v1
kind: Namespace
metadata:
  name: storagelink-csi
  labels:
    # The node plugin is privileged.
    pod-security.kubernetes.io/enforce: privileged
NAMESPACE
    "$1" template storagelink-csi charts/storagelink-csi --namespace storagelink-csi --values deploy/kubernetes/values.yaml |
        grep -v -e '^# Source: ' -e 'helm.sh/chart:' -e 'managed-by: Helm'
}
if [ "${2:-}" = --check ]; then
    diff -u "$file" <(render "$1") || { echo "$file is not what the chart renders: run make manifest" >&2; exit 1; }
else
    render "$1" >"$file"
fi
