# The images: one target each, controller, node and storagelinkd. Each holds its program, what that program starts, the
# libraries of both, and nothing else: no shell, no package manager.
#
# The binaries are built beforehand for Debian 12's libraries (`make images` does both); the base gives the programs and
# libraries. `--build-arg BASE=` names another Debian 12, one that already has the packages included.
ARG BASE=docker.io/library/debian:bookworm-slim

FROM ${BASE} AS base
ARG PACKAGES="btrfs-progs coreutils e2fsprogs libcap2-bin libdevmapper1.02.1 open-iscsi util-linux xfsprogs"
RUN dpkg-query -W $PACKAGES >/dev/null 2>&1 || { \
      apt-get update && apt-get install -y --no-install-recommends $PACKAGES && rm -rf /var/lib/apt/lists/*; }
COPY hack/image-root.sh /usr/local/bin/image-root
COPY target/release/storagelink-csi target/release/mpathutil target/release/storagelinkd /usr/bin/

FROM base AS controller-root
RUN image-root /root-fs /usr/bin/storagelink-csi

FROM base AS node-root
# driver/src/programs names the programs; chroot starts the host's own iscsiadm and modprobe.
RUN image-root /root-fs /usr/bin/storagelink-csi /usr/bin/mpathutil \
      chroot mkfs.ext4 mkfs.xfs mkfs.btrfs blkid e2fsck resize2fs xfs_growfs btrfs iscsid iscsiadm /etc/mke2fs.conf

FROM base AS storagelinkd-root
# configfs belongs to root; the gateway does not run as root (docs/operations.md says what its container is given).
RUN image-root /root-fs /usr/bin/storagelinkd && setcap cap_dac_override+ep /root-fs/usr/bin/storagelinkd

FROM scratch AS controller
COPY --from=controller-root /root-fs /
USER 65532:65532
ENTRYPOINT ["/usr/bin/storagelink-csi"]

FROM scratch AS node
COPY --from=node-root /root-fs /
ENV PATH=/usr/sbin:/usr/bin
ENTRYPOINT ["/usr/bin/storagelink-csi"]

FROM scratch AS storagelinkd
COPY --from=storagelinkd-root /root-fs /
USER 65532:65532
ENTRYPOINT ["/usr/bin/storagelinkd"]
