#!/usr/bin/env bash
# Becomes process 1 of a machine of its own: a systemd with this machine's files below a layer in memory, and with
# processes, network (loopback alone), mounts and control group of its own. Whatever happens there, this machine is as
# before; all is gone when process 1 is. Called by machine.rs, as root:
#   unshare --mount --pid --net --ipc --uts --cgroup --fork --kill-child=KILL machine.sh FOLDER
# FOLDER is empty and takes the layer. Units that would touch what the machines share, or only take time, are off.
set -euo pipefail

shared_services=(systemd-modules-load systemd-sysctl systemd-remount-fs systemd-random-seed systemd-udevd
    systemd-udev-trigger systemd-timesyncd kmod-static-nodes networking)
shared_sockets=(systemd-journald-audit systemd-udevd-kernel systemd-udevd-control epmd)
shared_timers=(apt-daily apt-daily-upgrade dpkg-db-backup e2scrub_all fstrim logrotate man-db)
shared_mounts=(sys-fs-fuse-connections sys-kernel-debug sys-kernel-tracing sys-kernel-config dev-hugepages dev-mqueue)

folder=$1
mount -t tmpfs tmpfs "$folder"
root=$folder/root
mkdir "$folder/upper" "$folder/work" "$root"
mount -t overlay -o "lowerdir=/,upperdir=$folder/upper,workdir=$folder/work" overlay "$root"

mount -t proc proc "$root/proc"
mount --bind "$root/proc/sys" "$root/proc/sys"
mount -o remount,bind,ro "$root/proc/sys"
mount -t sysfs -o ro sysfs "$root/sys"
mount -t tmpfs -o mode=755 tmpfs "$root/sys/fs/cgroup"
mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
for place in run tmp dev; do mount -t tmpfs -o mode=755 tmpfs "$root/$place"; done
chmod 1777 "$root/tmp"
for device in null zero full random urandom tty; do
    touch "$root/dev/$device"
    mount --bind "/dev/$device" "$root/dev/$device"
done
mkdir -m 1777 "$root/dev/shm"
mkdir "$root/dev/pts"
mount -t devpts -o newinstance,ptmxmode=0666 devpts "$root/dev/pts"
ln -s pts/ptmx "$root/dev/ptmx"
ln -s /proc/self/fd "$root/dev/fd"

for unit in "${shared_services[@]/%/.service}" "${shared_mounts[@]/%/.mount}" "${shared_sockets[@]/%/.socket}" \
    "${shared_timers[@]/%/.timer}"; do
    ln -sf /dev/null "$root/etc/systemd/system/$unit"
done
# The kernel's audit is one for all machines: neither on nor off.
mkdir -p "$root/etc/systemd/journald.conf.d"
printf '[Journal]\nAudit=\n' >"$root/etc/systemd/journald.conf.d/audit.conf"
# Of images for containers: forbids packages to start services.
rm -f "$root/usr/sbin/policy-rc.d"
ip link set lo up

mkdir "$root/run/before"
cd "$root"
pivot_root . run/before
umount --lazy /run/before
rmdir /run/before
exec env -i container=test PATH=/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8 \
    /lib/systemd/systemd --system --unit=basic.target --log-target=journal --show-status=no
