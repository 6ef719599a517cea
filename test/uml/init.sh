#!/bin/bash
# The first process in user-mode-linux, see boot.sh.
export LC_ALL=C HOME=/root
command=$(cat "$CAREOF_UML_COMMAND")
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t tmpfs run /run
mkdir /run/tmp
export TMPDIR=/run/tmp
mount -t devtmpfs dev /dev
mkdir -p /dev/shm /dev/pts
mount -t tmpfs shm /dev/shm
mount -t devpts pts /dev/pts
ln -s /proc/self/fd /dev/fd
ip link set lo up

# Busybox, which the set-up installs anyway; kmod need not be there. insmod wants what a module needs loaded before it: modules.dep names that behind each, the deepest last.
modules=/usr/lib/uml/modules/$(uname -r)
load() {
  local name needs at
  for name in "$@"; do
    needs=$(grep -m 1 "/$name.ko:" "$modules/modules.dep") || { echo "careof-uml: there is no module $name"; continue; }
    needs=${needs/:/}
    for at in $(printf '%s\n' $needs | tac); do
      [ -d "/sys/module/$(basename "${at//-/_}" .ko)" ] || busybox insmod "$modules/$at"
    done
  done
}
load veth tun bridge ipip sch_ingress cls_bpf iptable_filter nf_conntrack xt_conntrack xt_tcpudp

echo "careof-uml: running"
bash -c "$command" 2>&1
echo "careof-uml: ended $?"
sync
exec busybox poweroff -f
