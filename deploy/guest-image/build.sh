#!/bin/bash
# Builds the guest that the demo and the tests run: .cache/guest/vmlinuz and .cache/guest/initramfs.gz.
#
# Debian's cloud kernel (downloaded and unpacked, not installed), busybox, the virtio modules, and three static programs compiled
# here: the heartbeat service, the traffic endpoint, and one that dirties memory. Does nothing when no input has changed. The kernel is fetched once; delete
# .cache/guest to get a newer one. What the guest reads from its kernel command line is in ./init.
set -euo pipefail
export LC_ALL=C

image_dir=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
repo=$(cd "$image_dir/../.." && pwd)
output=$repo/.cache/guest
kernel=$output/kernel
busybox=/bin/busybox

# Loading order. virtio_ring comes before virtio although modules.dep does not say so.
modules=(virtio_ring virtio virtio_pci_modern_dev virtio_pci_legacy_dev virtio_pci virtio_mmio failover net_failover virtio_net virtio_blk)

# program in the guest = source in the repository
declare -A programs=([heartbeat]=guest/heartbeat.c [traffic]=deploy/lab/traffic.c [dirty]=deploy/guest-image/dirty.c)

refuse() {
  echo "guest-image: $*" >&2
  exit 1
}

require_inputs() {
  local source
  for source in "${programs[@]}"; do
    [ -f "$repo/$source" ] || refuse "$source is missing."
  done
  [ -x "$busybox" ] || refuse "$busybox is missing (Debian package busybox-static)."
  # The guest has no C library.
  ! ldd "$busybox" >/dev/null 2>&1 || refuse "$busybox is not statically linked (needs Debian's busybox-static)."
}

# The kernel that the metapackage depends on, by name.
kernel_package() {
  apt-cache depends --important linux-image-cloud-amd64 2>/dev/null |
    sed -n 's/^ *Depends: \(linux-image-[0-9].*-cloud-amd64\)$/\1/p' | head -n 1
}

# download_kernel: the .deb into the working directory; the package lists are brought up to date only if the first try fails.
download_kernel() {
  local package
  package=$(kernel_package)
  if [ -z "$package" ] || ! apt-get -q download "$package"; then
    apt-get -q update
    package=$(kernel_package)
    [ -n "$package" ] || refuse "the package lists have no linux-image-cloud-amd64."
    apt-get -q download "$package"
  fi
}

fetch_kernel() {
  local module path
  if [ -f "$kernel/complete" ]; then return; fi
  rm -rf "$kernel"
  mkdir -p "$kernel/modules" "$work/deb"
  (cd "$work/deb" && download_kernel)
  dpkg-deb -x "$work"/deb/linux-image-*.deb "$work/unpacked"
  cp "$work"/unpacked/boot/vmlinuz-* "$kernel/vmlinuz"
  for module in "${modules[@]}"; do
    path=$(find "$work/unpacked/lib/modules" -name "$module.ko")
    [ -n "$path" ] || refuse "the kernel package has no module $module."
    cp "$path" "$kernel/modules/"
  done
  basename "$work"/deb/linux-image-*.deb >"$kernel/complete"
}

build_initramfs() {
  local root=$work/root name
  mkdir -p "$root"/{bin,dev,etc,modules,proc,sys,tmp}
  cp "$busybox" "$root/bin/busybox"
  install -m 755 "$image_dir/init" "$root/init"
  for name in "${modules[@]}"; do
    cp "$kernel/modules/$name.ko" "$root/modules/"
    echo "$name" >>"$root/etc/modules"
  done
  for name in "${!programs[@]}"; do
    gcc -static -Os -s -Wall -Wextra -Werror -o "$root/bin/$name" "$repo/${programs[$name]}"
  done
  # The same inputs give the same bytes: sorted names, no times, no owners.
  find "$root" -exec touch -hd @0 {} +
  (cd "$root" && find . | sort | cpio --quiet -o -H newc -R 0:0 --reproducible | gzip -9n) >"$work/initramfs.gz"
}

# fingerprint: of everything that the image is made from, headers included.
fingerprint() {
  local sources
  read -ra sources <<<"$(cd "$repo" && gcc -MM "${programs[@]}" | tr '\\\n' '  ' | sed 's/[^ ]*\.o://g')"
  (cd "$repo" && sha256sum "$image_dir/build.sh" "$image_dir/init" "$busybox" "$kernel/complete" "${sources[@]}" | sha256sum)
}

require_inputs
mkdir -p "$output"
exec {lock}>"$output/lock"
flock "$lock"
work=$(mktemp -d "$output/work.XXXXXX")
trap 'rm -rf "$work"' EXIT
fetch_kernel
wanted=$(fingerprint)
if [ -f "$output/initramfs.gz" ] && [ "$(cat "$output/fingerprint" 2>/dev/null)" = "$wanted" ]; then exit 0; fi
build_initramfs
# Renamed into place: a guest that starts meanwhile reads the old image or the new one.
cp "$kernel/vmlinuz" "$work/vmlinuz"
mv "$work/vmlinuz" "$output/vmlinuz"
mv "$work/initramfs.gz" "$output/initramfs.gz"
printf '%s\n' "$wanted" >"$output/fingerprint"
echo "guest-image: $(cat "$kernel/complete"), initramfs $(stat -c %s "$output/initramfs.gz") bytes"
