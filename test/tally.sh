# shellcheck shell=bash
# Counts for test/run.sh: what each stage passed, failed and skipped, and the line that closes. Needs `work`, a directory, and sets `totals` and `running`.

totals=$work/totals
: >"$totals"
mkfifo "$work/counted"
# The process that a stage waits for, for whoever has to end it.
running=

passed() { echo "1 0 0" >>"$totals"; }
failed() { echo "0 1 0" >>"$totals"; }
skipped() { echo "0 0 1" >>"$totals"; }

# Shows the lines of a command as they come, and keeps its last count. Not awk: mawk, which is Debian's, reads a pipe by blocks.
pass_on() {
  local line said=
  while IFS= read -r line || [ -n "$line" ]; do
    if [[ $line =~ ^(interrupted:\ )?([0-9]+)\ passed,\ ([0-9]+)\ failed(,\ ([0-9]+)\ skipped)?$ ]]; then
      said="${BASH_REMATCH[2]} ${BASH_REMATCH[3]} ${BASH_REMATCH[5]:-0}"
    else
      printf '  %s\n' "$line"
    fi
  done
  if [ -n "$said" ]; then echo "$said" >>"$totals"; fi
}

# counted NAME COMMAND...: a command that says `N passed, N failed` or `N passed, N failed, N skipped` by itself, as a line of its own, the last one counting.
# Its other lines are shown as they come. A command that fails without a failure in its count, or ends without a count, is one failure more.
counted() {
  local name=$1 before reader status good bad left
  shift
  before=$(wc -l <"$totals")
  pass_on <"$work/counted" &
  reader=$!
  "$@" >"$work/counted" 2>&1 &
  running=$!
  wait "$running"
  status=$?
  running=
  wait "$reader"
  if [ "$(wc -l <"$totals")" -eq "$before" ]; then
    echo "  FAIL $name ended with $status and did not say how many passed"
    failed
    return
  fi
  read -r good bad left < <(tail -n 1 "$totals")
  if [ "$status" -ne 0 ] && [ "$bad" -eq 0 ]; then
    echo "  FAIL $name ended with $status, although it counted no failure"
    failed
  elif [ "$status" -eq 0 ] && [ "$bad" -gt 0 ]; then
    echo "  FAIL $name ended with 0, although $bad failed"
  elif [ $((good + bad + left)) -eq 0 ]; then
    echo "  FAIL $name counted nothing"
    failed
  fi
}

# The last line of all, and the exit code: 0 only if something passed and nothing failed.
close() {
  local good bad left
  read -r good bad left < <(awk '{ good += $1; bad += $2; left += $3 } END { print good + 0, bad + 0, left + 0 }' "$totals")
  if [ $((good + bad)) -eq 0 ]; then bad=1; fi
  printf '\n%d passed, %d failed, %d skipped\n' "$good" "$bad" "$left"
  [ "$bad" -eq 0 ]
  exit
}
