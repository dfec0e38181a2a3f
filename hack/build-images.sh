#!/usr/bin/env bash
# Builds the Dockerfile's images and saves them as archives, with a Docker engine of its own that pulls nothing: the base
# image is made here from Debian's packages. Prints the compressed sizes and fails when one is above its limit.
#   build-images.sh <cache> <output directory>
set -euo pipefail
cd "$(dirname "$0")/.."
cache=$1
out=$2
version=$(sed -n 's/^appVersion: *//p' charts/storagelink-csi/Chart.yaml)
packages=$(sed -n 's/^ARG PACKAGES="\(.*\)"/\1/p' Dockerfile)
# Limits in bytes of the gzip archive.
declare -A limit=([storagelink-csi-controller]=20000000 [storagelink-csi-node]=40000000 [storagelinkd]=20000000)
declare -A target=([storagelink-csi-controller]=controller [storagelink-csi-node]=node [storagelinkd]=storagelinkd)

key=$(cat Dockerfile hack/image-root.sh target/release/{storagelink-csi,mpathutil,storagelinkd} | sha256sum | cut -d' ' -f1)
mkdir -p "$out"
if [ "$(cat "$out/key" 2>/dev/null)" = "$key" ]; then
    cat "$out/sizes"
    exit 0
fi

base=$cache/image-base-$(echo "bookworm $packages" | sha256sum | cut -c1-12).tar
if [ ! -e "$base" ]; then
    echo "making the base image"
    sources=()
    for file in /etc/apt/sources.list.d/*.sources /etc/apt/sources.list; do
        [ ! -s "$file" ] || [[ $file == *backports* ]] || sources+=("$file")
    done
    mmdebstrap --quiet --variant=essential --include="$(echo "$packages" | tr ' ' ,)" \
        --dpkgopt='path-exclude=/usr/share/{doc,man,locale}/*' bookworm "$base.new.tar" "${sources[@]}"
    mv "$base.new.tar" "$base"
fi

work=$(mktemp -d)
docker_pid=
finish() {
    if [ -n "$docker_pid" ]; then
        kill "$docker_pid" 2>/dev/null || true
        wait "$docker_pid" 2>/dev/null || true
    fi
    # The engine's own mounts end with it; what is left must not be followed into.
    mount | awk -v d="$work/" 'index($3, d) == 1 { print $3 }' | sort -r | xargs -r -n1 umount 2>/dev/null || true
    rm -rf --one-file-system "$work"
}
trap finish EXIT

# A directory, sockets and a network of its own: an engine that already runs here is not touched.
dockerd --data-root "$work/data" --exec-root "$work/exec" --host "unix://$work/docker.sock" --pidfile "$work/docker.pid" \
    --iptables=false --ip6tables=false --bridge=none >"$work/dockerd.log" 2>&1 &
docker_pid=$!
export DOCKER_HOST=unix://$work/docker.sock DOCKER_BUILDKIT=0 DOCKER_CONFIG=$work/config
until docker info >/dev/null 2>&1; do
    kill -0 "$docker_pid" 2>/dev/null || { cat "$work/dockerd.log" >&2; exit 1; }
    [ "$SECONDS" -lt 60 ] || { echo "dockerd does not answer" >&2; tail "$work/dockerd.log" >&2; exit 1; }
    read -rt 0.2 <> <(:) || true
done

docker import "$base" storagelink-base:bookworm >/dev/null
: >"$out/sizes.new"
for image in storagelink-csi-controller storagelink-csi-node storagelinkd; do
    tag=ghcr.io/storagelink/$image:$version
    docker build --quiet --network none --build-arg BASE=storagelink-base:bookworm --target "${target[$image]}" --tag "$tag" . >/dev/null 2>"$work/build.log" ||
        { cat "$work/build.log" >&2; exit 1; }
    # Each starts as it is meant to run: without a writable root, without any other right.
    docker run --rm --network none --read-only --cap-drop ALL --cap-add DAC_OVERRIDE "$tag" --version
    docker save "$tag" -o "$out/$image.tar"
    size=$(gzip -c "$out/$image.tar" | wc -c)
    printf '%-28s %5.1f MB compressed (limit %d MB)\n' "$image" "$(echo "$size" | awk '{ print $1 / 1e6 }')" $((limit[$image] / 1000000)) | tee -a "$out/sizes.new"
    [ "$size" -le "${limit[$image]}" ] || { echo "$image is too large" >&2; exit 1; }
done
mv "$out/sizes.new" "$out/sizes"
echo "$key" >"$out/key"
