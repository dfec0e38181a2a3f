#!/bin/sh
# Makes the root file system of an image: the named files and programs, and every library that they load.
#   image-root <directory> <file or program>...
set -eu
root=$1
shift

for link in bin sbin lib lib64; do
    mkdir -p "$root/usr/$link"
    ln -s "usr/$link" "$root/$link"
done
# Mount points of a read-only root, and a home for accounts.
mkdir -p "$root/etc" "$root/dev" "$root/proc" "$root/sys" "$root/run" "$root/tmp" "$root/host" "$root/var/lib" "$root/var/run"
echo 'root:x:0:0:root:/:/sbin/nologin
nonroot:x:65532:65532:nonroot:/:/sbin/nologin' >"$root/etc/passwd"
echo 'root:x:0:
nonroot:x:65532:' >"$root/etc/group"
# Names of hosts: files, then DNS.
echo 'hosts: files dns' >"$root/etc/nsswitch.conf"

copy() {
    # /lib and the like are links into /usr on both sides.
    destination=$root$(readlink -f "$(dirname "$1")")/$(basename "$1")
    [ -e "$destination" ] && return
    mkdir -p "$(dirname "$destination")"
    cp -L "$1" "$destination"
}

for wanted in "$@"; do
    case $wanted in
    /*) file=$wanted ;;
    *) file=$(command -v "$wanted") || { echo "image-root: no program $wanted" >&2; exit 1; } ;;
    esac
    copy "$file"
    # Lines of ldd: `name => /path (address)`, or `/path (address)` for the loader.
    ldd "$file" 2>/dev/null | sed -n 's/.*\(=> \|^[[:space:]]\)\(\/[^ ]*\) (.*/\2/p' | while read -r library; do copy "$library"; done
done
# Names are looked up through these, which no program is linked with.
for library in /lib/*/libnss_dns.so.2 /lib/*/libnss_files.so.2 /lib/*/libresolv.so.2; do
    [ ! -e "$library" ] || copy "$library"
done
