#!/bin/bash
# Installs careof on this machine, from a clone that is built (`npm run setup`): /opt/careof, the command /usr/local/bin/careof and systemd units. Starts nothing.
#
#   bash deploy/install.sh               again to upgrade: what runs goes on with the old code until it is restarted
#   bash deploy/install.sh --uninstall   guests that run, /etc/careof and /var/lib/careof* stay
#
# With DESTDIR=DIRECTORY everything goes below it and systemd is left alone (for packages). Fetches nothing.
set -euo pipefail
export LC_ALL=C

repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
destination=${DESTDIR:-}
home=$destination/opt/careof
command=$destination/usr/local/bin/careof
units=$destination/etc/systemd/system
config=$destination/etc/careof
services=(careof-home-agent careof-agent careof-heartbeat)

refuse() {
  echo "careof: $*" >&2
  exit 1
}

# Is there a systemd to talk to?
systemd_runs() { [ -z "$destination" ] && [ -d /run/systemd/system ]; }

# The command is ours when it starts what stands in /opt/careof.
is_ours() { grep -qs '/opt/careof/dist/cli/main.js' "$command"; }

uninstall() {
  local service
  if [ -e "$command" ] && ! is_ours; then refuse "$command is not careof's; nothing was removed."; fi
  for service in "${services[@]}"; do
    [ -f "$units/$service.service" ] || continue
    if systemd_runs; then systemctl disable --quiet --now "$service.service"; fi
    rm -f "$units/$service.service"
  done
  if systemd_runs; then systemctl daemon-reload; fi
  rm -rf "$home" "$home.new" "$home.old" "$command"
  rmdir --ignore-fail-on-non-empty "$config" 2>/dev/null || true
  echo "careof is removed. Guests that run, /etc/careof and /var/lib/careof* were left as they are."
}

# Everything that `careof` needs at run time; the tests stay behind.
copy_program() {
  local module
  rm -rf "$home.new"
  mkdir -p "$home.new/net/bpf" "$home.new/guest"
  cp -R "$repo/dist" "$home.new/dist"
  rm -rf "$home.new/dist/test"
  find "$home.new/dist" -name .tsbuildinfo -delete
  cp "$repo/package.json" "$repo/README.md" "$home.new/"
  cp "$repo/net/bpf/careof.o" "$home.new/net/bpf/"
  cp "$repo/guest/heartbeat.c" "$home.new/guest/"
  # The packages that it runs with, not those that it is built and tested with.
  while read -r module; do
    mkdir -p "$home.new/${module%/*}"
    cp -R "$repo/$module" "$home.new/$module"
  done < <(cd "$repo" && npm ls --omit=dev --all --parseable 2>/dev/null | sed -n "s#^$repo/##p" | sort -u)
  [ -d "$home.new/node_modules/ws" ] || refuse "npm does not say which packages careof runs with; is node_modules complete? Run \`npm run setup\`."
  node "$home.new/dist/cli/main.js" --version >/dev/null || refuse "the copy in $home.new does not start."
}

install_command() {
  mkdir -p "${command%/*}"
  printf '#!/bin/sh\nexec %s /opt/careof/dist/cli/main.js "$@"\n' "$(command -v node)" >"$command.new"
  chmod 755 "$command.new"
  mv "$command.new" "$command"
}

install_units() {
  local service
  mkdir -p "$units"
  for service in "${services[@]}"; do install -m 644 "$repo/deploy/systemd/$service.service" "$units/$service.service"; done
  if systemd_runs; then systemctl daemon-reload; fi
}

case ${1:-} in
  "" | --uninstall) [ $# -le 1 ] ;;
  *) false ;;
esac || { echo "usage: install.sh [--uninstall]" >&2; exit 2; }

[ -n "$destination" ] || [ "$(id -u)" -eq 0 ] || refuse "must run as root."
if [ "${1:-}" = --uninstall ]; then
  uninstall
  exit
fi

command -v node >/dev/null && command -v npm >/dev/null || refuse "needs Node.js 20 or newer with npm in PATH."
[ "$(node -p 'process.versions.node.split(".")[0]')" -ge 20 ] || refuse "needs Node.js 20 or newer, and this is Node.js $(node -v)."
[ -f "$repo/dist/cli/main.js" ] || refuse "this clone is not built: run \`npm run setup\` first."
if [ -e "$command" ] && ! is_ours; then refuse "$command is there already and is not careof's."; fi

copy_program
if [ -d "$home" ]; then mv -T "$home" "$home.old"; fi
mv -T "$home.new" "$home"
rm -rf "$home.old"
install_command
install_units
mkdir -p "$config"
chmod 750 "$config"

echo "careof $(node -p 'require(process.argv[1]).version' "$home/package.json") is in /opt/careof, its command is careof."
echo "Write /etc/careof/home-agent.yaml or /etc/careof/agent.yaml, look with \`careof doctor\`, then: systemctl enable --now careof-home-agent (or careof-agent)."
