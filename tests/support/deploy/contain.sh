#!/bin/sh
# Run a command in an image's root as a container runtime does: contain.sh ROOT USER WORKDIR [TARGET=SOURCE ...] -- COMMAND ...
# The root is read-only except for /tmp, /dev/shm and the mounts. The command has USER's id and no capability.
# It inherits this script's environment. Call it with unshare, as process 1 of its own mount and process namespaces.
set -eu
root=$1 user=$2 workdir=$3
shift 3
inner_path=$PATH
PATH=/usr/sbin:/usr/bin:/sbin:/bin

mount --bind "$root" "$root"
mount -o remount,bind,ro "$root"
mount -t proc proc "$root/proc"
mount -t tmpfs -o mode=1777,nosuid,nodev,noexec tmpfs "$root/tmp"
mount -t tmpfs -o mode=755 tmpfs "$root/dev"
for device in null zero full random urandom; do
    touch "$root/dev/$device"
    mount --bind "/dev/$device" "$root/dev/$device"
done
mkdir --mode=1777 "$root/dev/shm"
while [ "$1" != -- ]; do
    mount --bind "${1#*=}" "$root${1%%=*}"
    shift
done
shift

command=$(command -v chroot)
PATH=$inner_path
exec "$command" "$root" /usr/bin/setpriv --reuid "${user%:*}" --regid "${user#*:}" --clear-groups \
    --bounding-set=-all --inh-caps=-all --no-new-privs \
    /bin/sh -c 'cd "$0" && exec "$@"' "$workdir" "$@"
