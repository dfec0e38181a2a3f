#!/bin/sh
# First program of a guest, on busybox: lays a tmpfs over the machine's own file system (9p, read-only) and gives
# the guest to lab-agent, whose path is on the kernel command line.
export PATH=/bin
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev
for f in /mods/*; do insmod "$f" || echo "lab: insmod $f failed"; done
mount -t 9p -o trans=virtio,version=9p2000.L,msize=262144,cache=loose,ro root /lower || echo "lab: no root"
mount -t tmpfs tmpfs /overlay; mkdir /overlay/upper /overlay/work
mount -t overlay -o lowerdir=/lower,upperdir=/overlay/upper,workdir=/overlay/work overlay /newroot
mkdir -p /newroot/lab
mount -t 9p -o trans=virtio,version=9p2000.L,msize=262144,cache=none lab /newroot/lab || echo "lab: no results directory"
mount --move /dev /newroot/dev; mount --move /proc /newroot/proc; mount --move /sys /newroot/sys
read -r line < /newroot/proc/cmdline
agent=${line##*lab.agent=}; agent=${agent%% *}
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root
exec /bin/switch_root /newroot "$agent" init
