#!/bin/sh
# Builds careof.o from careof.c. The result is committed, so that users need no compiler.
#   build.sh          writes careof.o
#   build.sh --check  builds elsewhere and compares; exit 1 when they differ
# Needs clang-14, libbpf-dev and linux-libc-dev (Debian 12). Without -g two builds are the same to the byte.
set -eu
cd "$(dirname "$0")"
CLANG=${CLANG:-clang-14}
case "${1:-}" in "" | --check) ;; *) echo "usage: build.sh [--check]" >&2; exit 2 ;; esac
command -v "$CLANG" >/dev/null || { echo "build.sh: $CLANG is not installed (Debian: clang-14 libbpf-dev linux-libc-dev)" >&2; exit 1; }

out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
"$CLANG" -O2 -target bpf -mcpu=v2 -Wall -Wextra -Werror -fno-ident -fdebug-prefix-map="$PWD=." \
  -I"/usr/include/$(uname -m)-linux-gnu" -c careof.c -o "$out/careof.o"

if [ "${1:-}" = --check ]; then
  cmp -s "$out/careof.o" careof.o || { echo "build.sh: net/bpf/careof.o is not what net/bpf/careof.c compiles to; run npm run bpf and commit the result" >&2; exit 1; }
  echo "net/bpf/careof.o is what net/bpf/careof.c compiles to"
else
  mv "$out/careof.o" careof.o
fi
