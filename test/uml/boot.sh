#!/bin/bash
# Runs a command in user-mode-linux: the machine's own files, another kernel (6.1), which has the ipip device that the machine's may not have.
#
#   boot.sh COMMAND [ARGUMENT...]      in the repository's directory, as root
#
# The command's output comes out here, and its exit code is this one's. Inside, /run (with TMPDIR) and /dev are file systems of its own; everything else is the
# machine's. 125: it did not boot, or died. Packages: deploy/setup/packages.sh.
set -uo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
repo=$(cd "$here/../.." && pwd)
memory=${CAREOF_UML_MEMORY:-1500M}

[ $# -gt 0 ] || { echo "usage: boot.sh COMMAND [ARGUMENT...]" >&2; exit 2; }
command -v linux.uml >/dev/null || { echo "boot.sh: linux.uml is not installed (Debian: user-mode-linux)" >&2; exit 125; }

work=$(mktemp -d)
mkfifo "$work/console"
printf -v quoted '%q ' "$@"
cat >"$work/command" <<END
export PATH='$PATH'
cd '$repo' && exec $quoted
END

# The files of the modules in the order in which they can be loaded. modules.dep names what one needs behind it, the deepest last. Found out here, where processes are cheap.
modules=/usr/lib/uml/modules/$(linux.uml --version)
in_order() {
  local name line file
  for name in "$@"; do
    line=$(grep -m 1 "/$name.ko:" "$modules/modules.dep") || { echo "boot.sh: there is no module $name" >&2; continue; }
    for file in $(printf '%s\n' ${line/:/} | tac); do printf '%s\n' "$modules/$file"; done
  done | awk '!seen[$0]++'
}
in_order veth tun ipip sch_ingress sch_tbf cls_bpf iptable_filter nf_conntrack xt_conntrack xt_tcpudp >"$work/modules"

child=
# What user-mode-linux starts are processes of its own group: none may outlive it.
end() {
  trap '' INT TERM
  if [ -n "$child" ]; then kill -KILL -- "-$child" 2>/dev/null; fi
  rm -rf "$work"
}
trap end EXIT
trap 'exit 130' INT TERM

sed -u 's/\r$//' <"$work/console" | awk -v status="$work/status" '
  /^careof-uml: ended / { print $3 > status; close(status); running = 0; next }
  /^careof-uml: running$/ { running = 1; next }
  running { print; fflush() }' &
reader=$!

# In a session of its own, so that its terminal driver leaves this one alone. TMPDIR holds its memory.
TMPDIR=$work setsid linux.uml mem="$memory" umid="careof-$$" uml_dir="$work/" rootfstype=hostfs root=/dev/root rootflags=/ rw quiet con=null con0=fd:0,fd:1 \
  init="$here/init.sh" CAREOF_UML_WORK="$work" </dev/null >"$work/console" 2>"$work/stderr" &
child=$!
wait "$child"
child=
wait "$reader"

if [ -s "$work/status" ]; then exit "$(cat "$work/status")"; fi
echo "boot.sh: user-mode-linux ended without running the command to its end: $(tail -n 3 "$work/stderr" | tr '\n' ' ')" >&2
exit 125
