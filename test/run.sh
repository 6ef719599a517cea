#!/bin/bash
# Every test of careof: set-up, types, lint, the BPF object, unit and contract tests, those of the ipip data plane in user-mode-linux, then the lab with real guests, one
# file after another, then every fault at some of the moments of a move.
#
#   npm test                        everything
#   npm test -- --only unit|uml|lab|faults|lint
#   npm test -- test/cli/api.test.ts ...    these files (built first)
#   npm test -- --no-setup ...      on a machine that is set up already
#   CAREOF_TEST_WITHOUT_UML=1 npm test   where user-mode-linux cannot boot: a skip instead of a failure
#
# Every stage runs even when one before it failed, except that nothing runs without a set-up. Closes with one line `N passed, N failed, N skipped`: each check
# counts as one, each assertion of a test as one, each fault at a moment as one. Exit 1 when anything failed, 2 on wrong usage.
set -uo pipefail
export LC_ALL=C

# User-mode-linux, which is slow: three to four minutes on two quiet processors, and ten where they are slow.
UML_LIMIT_S=1200
# Thirty-three cells take about five minutes; a machine twice as slow gets through as well.
FAULTS_LIMIT_S=1800

repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$repo" || exit 1

usage() {
  echo "usage: npm test [-- [--no-setup] [--only unit|uml|lab|faults|lint | FILE.test.ts ...]]" >&2
  exit 2
}

only=all
setup=yes
files=()
while [ $# -gt 0 ]; do
  case $1 in
    --only)
      [ $# -ge 2 ] || usage
      only=$2
      shift
      ;;
    --no-setup) setup=no ;;
    --only=*) only=${1#--only=} ;;
    -*) usage ;;
    *) files+=("$1") ;;
  esac
  shift
done
case $only in all | unit | uml | lab | faults | lint) ;; *) usage ;; esac

# built SOURCE: the compiled file that stands for test/x.test.ts. Made from the source's name, so that what is left of a deleted test never runs.
built() {
  local name=${1#"$repo"/}
  name=${name#./}
  name=${name#dist/}
  name=${name%.ts}
  echo "dist/${name%.js}.js"
}

for i in "${!files[@]}"; do
  source=$(built "${files[i]}")
  source=${source#dist/}
  if [ ! -f "${source%.js}.ts" ]; then
    echo "no such test: ${files[i]}" >&2
    exit 2
  fi
  files[i]=${source%.js}.ts
done

work=$(mktemp -d)
mkfifo "$work/tap"
# shellcheck source=test/tally.sh
. "$repo/test/tally.sh"
# The lint, while it runs in the background.
linting=
# Ends what it started and gives it time to clean up.
interrupted() {
  local each
  trap '' INT TERM
  for each in $running $linting; do
    kill -TERM "$each" 2>/dev/null
    wait "$each"
  done
  echo "interrupted" >&2
  exit 130
}
trap 'rm -rf "$work"' EXIT
trap interrupted INT TERM

lint=(node_modules/.bin/eslint --max-warnings 0 .)
# Waits for it and says what it has said.
linted() {
  local status=0
  wait "$linting" || status=$?
  linting=
  cat "$work/lint.log"
  return "$status"
}

stage() { printf '\n== %s\n' "$1"; }

# check NAME COMMAND...: one check; its output is shown only when it fails.
check() {
  local name=$1 start=$SECONDS
  shift
  echo "  ...  $name"
  if "$@" >"$work/check.log" 2>&1; then
    echo "  ok   $name ($((SECONDS - start)) s)"
    passed
  else
    local status=$?
    echo "  FAIL $name (exit $status, $((SECONDS - start)) s)"
    sed 's/^/    /' "$work/check.log"
    failed
  fi
}

# run_tap OPTION... -- SOURCE...: the tests through tap and the reader, whose counts go into the totals.
run_tap() {
  local options=() compiled=() source
  while [ "$1" != -- ]; do
    options+=("$1")
    shift
  done
  shift
  for source in "$@"; do compiled+=("$(built "$source")"); done
  if [ "${#compiled[@]}" -eq 0 ]; then
    echo "  FAIL there is not one test file"
    failed
    return
  fi
  read_tap node_modules/.bin/tap --reporter=tap "${options[@]}" "${compiled[@]}"
}

# read_tap COMMAND...: a command that speaks TAP, and the reader.
read_tap() {
  local before reader status
  before=$(wc -l <"$totals")
  node test/closing-line.mjs "$totals" <"$work/tap" &
  reader=$!
  "$@" >"$work/tap" 2>"$work/stderr" &
  running=$!
  wait "$running"
  status=$?
  running=
  wait "$reader"
  if [ "$status" -ne 0 ]; then grep -v '^npm warn' "$work/stderr" | tail -n 40 | sed 's/^/    stderr: /'; fi
  if [ "$(wc -l <"$totals")" -eq "$before" ]; then
    echo "  FAIL the reader of the results broke (tap: exit $status)"
    failed
  elif [ "$status" -ne 0 ] && [ "$(tail -n 1 "$totals" | cut -d ' ' -f 2)" -eq 0 ]; then
    echo "  FAIL tap ended with $status, although no test failed"
    failed
  fi
}

if [ "$setup" = yes ]; then
  stage "set-up"
  if bash deploy/setup/prepare.sh test; then
    echo "  ok   set-up (${SECONDS} s)"
    passed
  else
    echo "  FAIL set-up"
    failed
    close
  fi
fi

if [ "${#files[@]}" -gt 0 ]; then
  check "types" npm run --silent build
  stage "chosen files"
  run_tap --jobs=1 --timeout=1800 -- "${files[@]}"
  close
fi

if [ "$only" = all ] || [ "$only" = lint ]; then
  stage "checks"
  check "types" npm run --silent build
  # User-mode-linux leaves one processor idle, so with everything the lint is run beside it.
  if [ "$only" = lint ]; then check "lint" "${lint[@]}"; fi
  check "BPF object is what its source makes" bash net/bpf/build.sh --check
else
  check "types" npm run --silent build
fi

if [ "$only" = all ] || [ "$only" = unit ]; then
  stage "unit and contract tests"
  mapfile -t unit < <(find test -name '*.test.ts' -not -path 'test/lab/*' | sort)
  run_tap -- "${unit[@]}"
fi

if [ "$only" = all ] || [ "$only" = uml ]; then
  stage "ipip: the kernel's own tunnel device, in user-mode-linux"
  if [ "$only" = all ]; then
    "${lint[@]}" >"$work/lint.log" 2>&1 &
    linting=$!
  fi
  if timeout --kill-after=10 120 bash test/uml/boot.sh true >"$work/uml.log" 2>&1; then
    read_tap timeout --kill-after=60 "$UML_LIMIT_S" node dist/test/uml/main.js
  elif [ "${CAREOF_TEST_WITHOUT_UML:-}" = 1 ]; then
    echo "  SKIP user-mode-linux does not boot here, and CAREOF_TEST_WITHOUT_UML=1 says that it cannot: $(tail -n 1 "$work/uml.log")"
    skipped
  else
    echo "  FAIL user-mode-linux does not boot here, so the ipip data plane is not tested: $(tail -n 1 "$work/uml.log")"
    echo "       Where it cannot (another processor than x86, no ptrace), CAREOF_TEST_WITHOUT_UML=1 makes this a skip."
    failed
  fi
  if [ -n "$linting" ]; then check "lint" linted; fi
fi

if [ "$only" = all ] || [ "$only" = lab ]; then
  stage "lab: real guests in network namespaces"
  mapfile -t lab < <(find test/lab -name '*.test.ts' 2>/dev/null | sort)
  run_tap --jobs=1 --timeout=1800 -- "${lab[@]}"
fi

if [ "$only" = all ] || [ "$only" = faults ]; then
  stage "faults: a real guest, and one thing that breaks at one moment of its move"
  counted "the faults" timeout --kill-after=60 "$FAULTS_LIMIT_S" node dist/test/faults/main.js --half
fi

close
