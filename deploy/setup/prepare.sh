#!/bin/bash
# Prepares a machine for careof's demo, tests and benchmarks: Debian packages, npm packages, the build, the guest image.
#
#   prepare.sh [demo|test|bench]
#
# Idempotent: what is there already is left alone, and a run that finds everything in place touches no network.
# Says what it does on stderr when that takes more than two seconds; exit 1 with one sentence when it cannot go on,
# 2 on wrong usage. The checks come before the first change, so a refusal leaves nothing behind.
set -euo pipefail
export LC_ALL=C

setup_dir=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
repo=$(cd "$setup_dir/../.." && pwd)
purpose=${1:-demo}
log_dir=$repo/.cache/setup

# shellcheck source=deploy/setup/progress.sh
. "$setup_dir/progress.sh"
# shellcheck source=deploy/setup/requirements.sh
. "$setup_dir/requirements.sh"
# shellcheck source=deploy/setup/packages.sh
. "$setup_dir/packages.sh"

case $#$purpose in
  [01]demo | 1test | 1bench) ;;
  *)
    echo "usage: prepare.sh [demo|test|bench]" >&2
    exit 2
    ;;
esac

# The lock file says of which package-lock.json and Node this node_modules was made; `npm ci` deletes the stamp with the rest.
install_npm_packages() {
  local stamp=$repo/node_modules/.careof-stamp wanted
  wanted="$(sha256sum <"$repo/package-lock.json") $(node -p 'process.versions.modules + process.arch')"
  if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ]; then return; fi
  step npm-ci "installing npm packages" "npm could not install the packages of package-lock.json" \
    npm ci --no-audit --no-fund
  printf '%s\n' "$wanted" >"$stamp"
}

require_root
require_node
require_kernel
cd "$repo"
mkdir -p "$log_dir"
install_debian_packages "$purpose"
require_traffic_control
lock_or_wait "$repo/.cache/setup.lock" "another run in this directory"
install_npm_packages
step build "compiling" "the build failed" npm run --silent build
step guest-image "building the guest image" "the guest image could not be built" \
  bash "$repo/deploy/guest-image/build.sh"
