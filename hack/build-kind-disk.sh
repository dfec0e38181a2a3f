#!/usr/bin/env bash
# Makes the disk of a Docker engine that `lab kind` boots with, without any registry: the node image that kind starts, with the
# images of every pod unpacked in it, and the target container. Prints the disk's path; a disk of the same content is found again.
#   build-kind-disk.sh <cache> <directory of `make images`>
#
# The node image keeps kind's contract (kind.sigs.k8s.io, "node image"): an entrypoint that ends as systemd, containerd and kubelet as
# services of it, /kind/version, kubeadm and kubectl. e2e/kind/node has what is in it beside Debian's packages.
set -euo pipefail
cd "$(dirname "$0")/.."
cache=$1
images=$2
# shellcheck source=../e2e/kube/versions.env
. e2e/kube/versions.env
kubernetes=$cache/kubernetes-v$KUBERNETES
kubeadm=$cache/kubeadm-v$KUBERNETES
sidecars=$cache/csi-sidecars-p$EXTERNAL_PROVISIONER-a$EXTERNAL_ATTACHER-r$EXTERNAL_RESIZER-s$EXTERNAL_SNAPSHOTTER
for directory in "$kubernetes" "$kubeadm" "$sidecars"; do
    [ -d "$directory" ] || { echo "$directory is missing: run hack/install-kube.sh $cache kubernetes sidecars kubeadm" >&2; exit 1; }
done
node_image=storagelink/kind-node:v$KUBERNETES
# Free space of the disk beyond what the images take: volumes of the nodes, layers of containers, the array's files.
room_mib=6144
# The tag by which chart and walk name the project's images.
version=$(sed -n 's/^appVersion: *//p' charts/storagelink-csi/Chart.yaml)

# What systemd, the kubelet, kubeadm and a CSI node plugin find on a node.
packages="systemd systemd-sysv containerd crun containernetworking-plugins iproute2 nftables iptables conntrack ethtool socat
    mount kmod procps util-linux e2fsprogs xfsprogs open-iscsi ca-certificates"
# And what the containers of the walk are built of.
packages+=" $(sed -n 's/^ARG PACKAGES="\(.*\)"/\1/p' e2e/kind/*/Dockerfile | paste -sd' ')"
packages=$(echo $packages | tr ' ' '\n' | LC_ALL=C sort -u | paste -sd,)
base=$cache/kind-node-base-$(echo "bookworm $packages" | sha256sum | cut -c1-12).tar
if [ ! -e "$base" ]; then
    echo "making the base of the node image" >&2
    sources=()
    for file in /etc/apt/sources.list.d/*.sources /etc/apt/sources.list; do
        [ ! -s "$file" ] || [[ $file == *backports* ]] || sources+=("$file")
    done
    mmdebstrap --quiet --variant=essential --include="$packages" \
        --dpkgopt='path-exclude=/usr/share/{doc,man,locale}/*' bookworm "$base.new.tar" "${sources[@]}" >&2
    mv "$base.new.tar" "$base"
fi

key=$({
    echo "$base"
    cat "$images/key" e2e/kube/versions.env hack/build-kind-disk.sh /bin/busybox target/release/{storagelinkd,kind-target,lab-writer}
    find e2e/kind -type f | LC_ALL=C sort | xargs sha256sum
} | sha256sum | cut -c1-16)
disk=$cache/kind-docker-$key.raw
if [ -e "$disk" ]; then
    touch "$disk"
    echo "$disk"
    exit 0
fi

work=$(mktemp -d -p "$cache" kind-docker-XXXXXX)
docker_pid=
containerd_pid=
end() { # process id
    [ -z "$1" ] || { kill "$1" 2>/dev/null && wait "$1" 2>/dev/null; } || true
}
finish() {
    end "$containerd_pid"
    end "$docker_pid"
    # The engines' own mounts end with them; what is left must not be followed into.
    mount | awk -v d="$work/" 'index($3, d) == 1 { print $3 }' | sort -r | xargs -r -n1 umount 2>/dev/null || true
    rm -rf --one-file-system "$work"
}
trap finish EXIT
answers() { # process id, its log, a command that succeeds once it serves
    local pid=$1 log=$2
    shift 2
    until "$@" >/dev/null 2>&1; do
        kill -0 "$pid" 2>/dev/null || { cat "$log" >&2; exit 1; }
        [ "$SECONDS" -lt 600 ] || { echo "does not answer: $*" >&2; tail "$log" >&2; exit 1; }
        read -rt 0.2 <> <(:) || true
    done
}

# A directory, sockets and a network of its own: an engine that already runs here is not touched.
dockerd --data-root "$work/data" --exec-root "$work/exec" --host "unix://$work/docker.sock" --pidfile "$work/docker.pid" \
    --iptables=false --ip6tables=false --bridge=none >"$work/dockerd.log" 2>&1 &
docker_pid=$!
export DOCKER_HOST=unix://$work/docker.sock DOCKER_BUILDKIT=0 DOCKER_CONFIG=$work/config
answers $docker_pid "$work/dockerd.log" docker info

docker import "$base" storagelink-kind-base >/dev/null
echo "building the containers of the walk" >&2
build() { # Dockerfile, name:tag
    docker build --quiet --network none --build-arg BASE=storagelink-kind-base --file "$1" --tag "$2" . >"$work/build.log" 2>&1 ||
        { cat "$work/build.log" >&2; exit 1; }
}
build e2e/kind/target/Dockerfile "storagelink-e2e-target:$version"

# The images of pods, each an archive of one layer: a program with the libraries it loads, and the product's.
mkdir "$work/archives"
# What pods of the walk are made of, as the walk itself would build it.
build e2e/kind/writer/Dockerfile lab/writer:1
docker save lab/writer:1 -o "$work/archives/writer.tar"
docker rmi lab/writer:1 >/dev/null
number=0
image() { # name:tag, program, arguments of the entrypoint...
    local tag=$1 program=$2 name root entrypoint word applet
    shift 2
    name=$(basename "$program")
    entrypoint="\"/usr/local/bin/$name\""
    for word in "$@"; do entrypoint+=", \"$word\""; done
    number=$((number + 1))
    root=$work/image
    rm -rf "$root"
    mkdir -p "$root"/{bin,usr/local/bin,etc,proc,sys,dev,tmp,run,var}
    cp "$program" "$root/usr/local/bin/"
    # Lines of ldd: `name => /path (address)`, or `/path (address)` for the loader; a static program has none.
    { ldd "$program" 2>/dev/null || true; } | sed -n 's/.*\(=> \|^[[:space:]]\)\(\/[^ ]*\) (.*/\2/p' |
        while read -r library; do
            mkdir -p "$root$(dirname "$library")"
            cp -L "$library" "$root$library"
        done
    printf 'root:x:0:0:root:/:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/sh\n' >"$root/etc/passwd"
    tar -C "$root" --numeric-owner --owner=0 --group=0 -c . |
        docker import -c 'ENV PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin' \
            -c "ENTRYPOINT [$entrypoint]" - "$tag" >/dev/null
    docker save "$tag" -o "$work/archives/$number.tar"
    docker rmi "$tag" >/dev/null
}
pause=
while read -r tag; do
    case $tag in
    */pause:*)
        pause=$tag
        # Ends with its pod only; a sandbox is killed, not asked.
        image "$tag" /bin/busybox sleep 2147483647
        ;;
    */etcd:*) image "$tag" "$kubeadm/etcd" ;;
    */kube-proxy:* | */coredns/*) ;;
    *) image "$tag" "$kubernetes/$(basename "${tag%:*}")" ;;
    esac
done < <("$kubeadm/kubeadm" config images list --kubernetes-version "v$KUBERNETES" 2>/dev/null)
registry=registry.k8s.io/sig-storage
image "$registry/csi-provisioner:v$EXTERNAL_PROVISIONER" "$sidecars/csi-provisioner"
image "$registry/csi-attacher:v$EXTERNAL_ATTACHER" "$sidecars/csi-attacher"
image "$registry/csi-resizer:v$EXTERNAL_RESIZER" "$sidecars/csi-resizer"
image "$registry/csi-snapshotter:v$EXTERNAL_SNAPSHOTTER" "$sidecars/csi-snapshotter"
cp "$images"/storagelink-csi-{controller,node}.tar "$work/archives/"

echo "unpacking the images of pods" >&2
cat >"$work/containerd.toml" <<E2
version = 2
root = "$work/containerd"
state = "$work/containerd-state"
disabled_plugins = ["io.containerd.grpc.v1.cri"]
[grpc]
  address = "$work/containerd.sock"
E2
containerd -c "$work/containerd.toml" >"$work/containerd.log" 2>&1 &
containerd_pid=$!
answers $containerd_pid "$work/containerd.log" ctr -a "$work/containerd.sock" version
for archive in "$work"/archives/*.tar; do
    ctr -a "$work/containerd.sock" -n k8s.io images import "$archive" >/dev/null
done
# A clean end writes its database.
end "$containerd_pid"
containerd_pid=

echo "making the node image" >&2
root=$work/node
mkdir "$root"
tar -C "$root" -xf "$base"
rm -rf "$root"/dev/* "$root/var/lib/containerd" "$root"/etc/cni/net.d/*
mkdir -p "$root/kind" "$root/etc/kubernetes/manifests" "$root/etc/containerd" "$root/var/lib/kubelet"
mv "$work/containerd" "$root/var/lib/containerd"
# kind keeps /var of a node on a volume, and Docker copies there what the image has: not the files of the images of pods. Those stay
# in the image, behind links.
store=$root/var/lib/containerd
for kind in snapshots blobs; do
    mkdir "$root/kind/$kind"
done
for snapshot in "$store"/io.containerd.snapshotter.v1.overlayfs/snapshots/*; do
    name=$(basename "$snapshot")
    mv "$snapshot" "$root/kind/snapshots/$name"
    ln -s "/kind/snapshots/$name" "$snapshot"
done
find "$store/io.containerd.content.v1.content/blobs" -type f -size +64k | while read -r blob; do
    name=$(basename "$blob")
    mv "$blob" "$root/kind/blobs/$name"
    ln -s "/kind/blobs/$name" "$blob"
done
install -m 755 e2e/kind/node/entrypoint "$root/usr/local/bin/entrypoint"
cp -r e2e/kind/node/{bin,patches} "$root/kind/"
sed "s#@PAUSE@#$pause#" e2e/kind/node/containerd.toml >"$root/etc/containerd/config.toml"
echo "v$KUBERNETES" >"$root/kind/version"
install "$kubernetes/kubelet" "$kubernetes/kubectl" "$kubeadm/kubeadm" "$root/usr/bin/"
# Of a machine's services only what pods need, and the journal; devices and modules are the host's business.
rm -f "$root"/etc/systemd/system/*.wants/* "$root"/lib/systemd/system/{multi-user,local-fs,basic,timers}.target.wants/*
find "$root"/lib/systemd/system/{sysinit,sockets}.target.wants -type l ! -name 'systemd-journald*' -delete
cp e2e/kind/node/systemd/*.service "$root/etc/systemd/system/"
mkdir -p "$root/etc/systemd/system/multi-user.target.wants"
for service in containerd kubelet; do
    ln -s "/etc/systemd/system/$service.service" "$root/etc/systemd/system/multi-user.target.wants/"
done
ln -sf /lib/systemd/system/multi-user.target "$root/etc/systemd/system/default.target"
echo ReadKMsg=no >>"$root/etc/systemd/journald.conf"
tar -C "$root" --numeric-owner --xattrs -c . |
    docker import -c 'ENV container=docker' -c 'ENTRYPOINT ["/usr/local/bin/entrypoint", "/sbin/init"]' - "$node_image" >/dev/null
# What asks systemd to end.
printf 'FROM %s\nSTOPSIGNAL SIGRTMIN+3\n' "$node_image" | docker build --quiet --tag "$node_image" - >/dev/null 2>&1

end "$docker_pid"
docker_pid=
rm -rf "$root" "$work/archives"

used=$(du -sm "$work/data" | cut -f1)
mke2fs -q -t ext4 -O ^has_journal -d "$work/data" "$work/disk.raw" $((used * 5 / 4 + room_mib))M >&2
mv "$work/disk.raw" "$disk"
# Only the newest are kept; another run may be about to boot from one of them.
ls -t "$cache"/kind-docker-*.raw | tail -n +4 | xargs -r rm -f
echo "$disk"
