# What a machine must be able to do before anything is installed on it. Sourced by prepare.sh; each check needs only what every
# Debian has (util-linux and perl-base are essential packages) and leaves nothing behind.

require_root() {
  [ "$(id -u)" -eq 0 ] || refuse "must run as root, because it makes network namespaces, TAP devices and BPF programs."
}

require_node() {
  local major
  command -v node >/dev/null && command -v npm >/dev/null || refuse "needs Node.js 20 or newer with npm in PATH."
  major=$(node -p 'process.versions.node.split(".")[0]')
  [ "$major" -ge 20 ] || refuse "needs Node.js 20 or newer, and this is Node.js $(node -v)."
}

require_kernel() {
  [ "$(uname -m)" = x86_64 ] || refuse "the demo and the tests need an x86-64 machine, and this one is $(uname -m)."
  unshare --net true 2>/dev/null ||
    refuse "cannot make a network namespace here: run it on a machine or VM of its own, or in a container with CAP_SYS_ADMIN."
  [ -c /dev/net/tun ] || refuse "there is no /dev/net/tun: load the kernel module tun, or pass the device to this container."
  (exec 3<>/dev/net/tun) 2>/dev/null ||
    refuse "cannot open /dev/net/tun: load the kernel module tun, or allow this container to use the device."
  can_make_bpf_map ||
    refuse "the bpf system call is refused here: it needs a kernel with CONFIG_BPF_SYSCALL, and CAP_BPF or CAP_SYS_ADMIN."
}

# bpf(BPF_MAP_CREATE) of a one-entry array map, gone when perl exits. 321 is __NR_bpf on x86-64.
can_make_bpf_map() {
  perl -e 'my $attr = pack("L4", 2, 4, 4, 1) . "\0" x 112; exit(syscall(321, 0, $attr, length $attr) < 0)' 2>/dev/null
}

# Needs iproute2, hence after the packages.
require_traffic_control() {
  unshare --net tc qdisc add dev lo clsact 2>/dev/null ||
    refuse "the kernel has no clsact queueing discipline (CONFIG_NET_SCH_INGRESS), which carries careof's BPF programs."
}
