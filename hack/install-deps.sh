#!/usr/bin/env bash
# Installs what building and testing need on Debian 12, and nothing that is there already. As root.
# QEMU comes from bookworm-backports: Debian 12's own 7.2 can spin for ever with two emulated CPUs when the kernel patches
# its own code (seen with jump labels), 8.1 and newer do not.
set -euo pipefail

build=(build-essential pkg-config libdevmapper-dev libclang-14-dev)
lab=(busybox-static cpio iproute2 kmod xz-utils zstd dbus udev util-linux
     targetcli-fb open-iscsi lsscsi sg3-utils fio
     e2fsprogs xfsprogs btrfs-progs)
# The cluster lab: Debian's packages of what a worker runs and of the control plane's store.
kube=(containerd runc crun etcd-server containernetworking-plugins nftables)
# The images: an engine, and the base that it builds on.
images=(docker.io mmdebstrap)
# Not here: multipath-tools. Its installation would start multipathd on this machine and change udev's rules in every guest; what needs it
# fetches it and unpacks it in its own guests (e2e/src/packages.rs).
qemu_minimum=8.1

missing=()
for package in "${build[@]}" "${lab[@]}" "${kube[@]}" "${images[@]}"; do
    dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null | grep -qx installed || missing+=("$package")
done

qemu_is_new_enough() {
    local version
    version=$(dpkg-query -W -f '${Version}' qemu-system-x86 2>/dev/null) || return 1
    dpkg --compare-versions "$version" ge "1:$qemu_minimum"
}

# The backports suite of the very mirror that this machine uses.
enable_backports() {
    apt-cache policy qemu-system-x86 | grep -q bookworm-backports && return
    local file
    file=$(grep -lE '^Suites:.*\bbookworm-updates\b' /etc/apt/sources.list.d/*.sources 2>/dev/null | head -n 1 || true)
    if [ -n "$file" ]; then
        awk 'BEGIN { RS = ""; } /bookworm-updates/ { print; exit }' "$file" |
            sed 's/^Suites:.*/Suites: bookworm-backports/' >/etc/apt/sources.list.d/bookworm-backports.sources
    else
        sed -n 's/ bookworm-updates / bookworm-backports /p' /etc/apt/sources.list >/etc/apt/sources.list.d/bookworm-backports.list
    fi
    apt-get update -q
}

export DEBIAN_FRONTEND=noninteractive
if [ ${#missing[@]} -gt 0 ]; then
    echo "installing: ${missing[*]}"
    apt-get update -q
    apt-get install -y -q --no-install-recommends "${missing[@]}"
fi
if ! qemu_is_new_enough; then
    echo "installing: qemu-system-x86 (bookworm-backports)"
    [ ${#missing[@]} -gt 0 ] || apt-get update -q
    enable_backports
    apt-get install -y -q --no-install-recommends -t bookworm-backports qemu-system-x86
fi
for program in cargo go; do
    command -v "$program" >/dev/null || { echo "$program is missing: install Rust 1.90 or newer and Go 1.26 or newer" >&2; exit 1; }
done
