# Debian packages for the demo, the tests and the benchmarks, installed once. Sourced by prepare.sh.
#
# QEMU: at least 10, because 7.2 (Debian 12) corrupts emulated guests in long migrations. Where the configured suites have only an
# older one, the backports suite of the machine's own mirror is added; its default pin (100) upgrades nothing by itself.

oldest_qemu=10
# seabios stands beside QEMU because QEMU's package asks for the newer one, and apt takes only named packages from a suite pinned low.
qemu_packages=(qemu-system-x86 qemu-system-common qemu-system-data seabios)
sources_parts=/etc/apt/sources.list.d

# packages_for PURPOSE: package names, without QEMU's.
packages_for() {
  echo iproute2 gcc libc6-dev busybox-static cpio gzip util-linux
  case $1 in test | bench) echo clang-14 llvm-14 libbpf-dev linux-libc-dev nftables ;; esac
  if [ "$1" = test ]; then echo iptables user-mode-linux; fi
  if [ "$1" = bench ]; then echo wireguard-go wireguard-tools user-mode-linux; fi
}

# missing_packages NAME...: those not fully installed.
missing_packages() {
  local installed name
  installed=" $(dpkg-query -W -f '${db:Status-Status} ${Package}\n' "$@" 2>/dev/null | sed -n 's/^installed //p' | tr '\n' ' ' || true)"
  for name in "$@"; do
    case $installed in *" $name "*) ;; *) echo "$name" ;; esac
  done
}

# Also satisfied by a QEMU that did not come as a package.
has_recent_qemu() {
  local version
  version=$(qemu-system-x86_64 --version 2>/dev/null | sed -n '1s/.*version \([0-9]*\)\..*/\1/p') || return 1
  [ "${version:-0}" -ge "$oldest_qemu" ]
}

apt_get() {
  DEBIAN_FRONTEND=noninteractive NEEDRESTART_SUSPEND=1 apt-get -q -o DPkg::Lock::Timeout=300 -o Acquire::Retries=3 "$@"
}

# suites_with_qemu: versions that apt could install, those of the installed release first.
suites_with_qemu() {
  apt-cache madison qemu-system-x86 | awk -F ' *[|] *' -v oldest="$oldest_qemu" \
    '{ version = $2; sub(/^[0-9]+:/, "", version); split($3, where, " "); split(where[2], suite, "/")
       if (version + 0 >= oldest) print suite[1] }'
}

# backports_entries CODENAME DIRECTORY: for every place from which this machine takes CODENAME's component main, a sources file
# of the same format that names CODENAME-backports instead, with the same mirror, key and options, as DIRECTORY/N.{sources,list}.
backports_entries() {
  local file
  for file in "$sources_parts"/*.sources; do
    [ -f "$file" ] || continue
    sed -e '/^#/d' -e 's/^[ \t]*$//' "$file" | awk -v codename="$1" -v directory="$2" -v origin="${file##*/}" '
      BEGIN { RS = ""; FS = "\n" }
      function words(text) { sub(/^[^:]*:/, "", text); gsub(/[ \t]+/, " ", text); return " " text " " }
      {
        entry = ""; wanted = 0; field = ""
        for (i = 1; i <= NF; i++) {
          if ($i !~ /^[ \t]/) { field = tolower($i); sub(/:.*/, "", field) }
          if (field == "enabled" && words($i) ~ / no /) wanted = -9
          if (field == "types") { if (words($i) ~ / deb /) wanted++; continue }
          if (field == "suites") { if (index(words($i), " " codename " ")) wanted++; continue }
          if (field == "components") { if (words($i) ~ / main /) wanted++; continue }
          entry = entry $i "\n"
        }
        if (wanted == 3) {
          print "Types: deb\nSuites: " codename "-backports\nComponents: main\n" entry > (directory "/" origin NR ".sources")
        }
      }'
  done
  for file in /etc/apt/sources.list "$sources_parts"/*.list; do
    [ -f "$file" ] || continue
    sed -n -E "s/^[ \t]*deb[ \t]+(\[[^]]*\][ \t]+)?([^ \t]+)[ \t]+$1[ \t]+(.*[ \t])?main([ \t].*)?\$/deb \1\2 $1-backports main/p" "$file" |
      split -l 1 --additional-suffix=.list - "$2/${file##*/}"
  done
}

# Tries the entries one by one: another vendor's archive may use the same suite name without having backports.
add_backports() {
  local codename candidates entry
  codename=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
  [ -n "$codename" ] || return 1
  candidates=$(mktemp -d)
  backports_entries "$codename" "$candidates"
  for entry in "$candidates"/*; do
    [ -f "$entry" ] || continue
    rm -f "$sources_parts"/careof-backports.*
    cp "$entry" "$sources_parts/careof-backports.${entry##*.}"
    if apt_get update && [ -n "$(suites_with_qemu)" ]; then
      rm -rf "$candidates"
      return 0
    fi
    echo "the source ${entry##*/} has no usable backports suite"
  done
  rm -rf "$candidates" "$sources_parts"/careof-backports.*
  return 1
}

# fetch_and_install WITH_QEMU NAME...: the whole of it, run as one step.
fetch_and_install() {
  local with_qemu=$1 suite name
  shift
  local wanted=("$@")
  apt_get update
  if [ "$with_qemu" = yes ]; then
    if [ -z "$(suites_with_qemu)" ]; then add_backports; fi
    suite=$(suites_with_qemu | head -n 1)
    for name in "${qemu_packages[@]}"; do wanted+=("$name/$suite"); done
  fi
  apt_get install -y --no-install-recommends "${wanted[@]}"
}

# install_debian_packages PURPOSE
install_debian_packages() {
  local wanted missing qemu=no shown
  read -ra wanted <<<"$(packages_for "$1" | tr '\n' ' ')"
  mapfile -t missing < <(missing_packages "${wanted[@]}")
  has_recent_qemu || qemu=yes
  if [ "$qemu" = no ] && [ "${#missing[@]}" -eq 0 ]; then return; fi
  command -v apt-get >/dev/null ||
    refuse "these Debian packages are missing and there is no apt-get: ${missing[*]}$([ "$qemu" = no ] || echo " qemu-system-x86 (>= $oldest_qemu)")."
  lock_or_wait /run/careof-setup.lock "another run that installs packages"
  mapfile -t missing < <(missing_packages "${wanted[@]}")
  shown="${missing[*]}$(if [ "$qemu" = yes ]; then echo " QEMU"; fi)"
  step debian-packages "installing Debian packages (${shown# })" \
    "apt could not install the Debian packages that are missing (${shown# })" \
    bash -c "set -euo pipefail; setup_dir=$(printf %q "$setup_dir"); . \"\$setup_dir/packages.sh\"; fetch_and_install \"\$@\"" \
    fetch_and_install "$qemu" "${missing[@]}"
  unlock
  has_recent_qemu || refuse "the QEMU that apt installed is older than $oldest_qemu."
}
