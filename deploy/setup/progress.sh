# How the set-up talks: one line for what takes more than two seconds, one sentence for what fails. Sourced by prepare.sh.

say() { printf 'setup: %s\n' "$*" >&2; }

refuse() {
  printf 'careof: %s\n' "$*" >&2
  exit 1
}

# A descriptor on which `read -t` can wait: unlike sleep it is no child process that outlives the watcher and holds the terminal.
exec 8<> <(:)

# watch_step TEXT: after two seconds says what is going on, then every ten seconds that it still is.
watch_step() {
  local seconds=2
  read -rt 2 -u 8 || true
  say "$1 ..."
  while true; do
    read -rt 10 -u 8 || true
    seconds=$((seconds + 10))
    say "$1: $seconds s so far"
  done
}

# step NAME TEXT FAILURE COMMAND...: runs the command with its output in .cache/setup/NAME.log; when it fails, shows the log's
# tail and the sentence FAILURE, and exits 1. Mirrors' host names stay in the log.
step() {
  local name=$1 text=$2 failure=$3 log=$log_dir/$1.log watcher status=0
  shift 3
  watch_step "$text" &
  watcher=$!
  "$@" >"$log" 2>&1 </dev/null || status=$?
  kill "$watcher" 2>/dev/null || true
  wait "$watcher" 2>/dev/null || true
  if [ "$status" -ne 0 ]; then
    tail -n 20 "$log" | sed -E 's#\b([a-z+]+)://[^/ ]+#\1://...#g' >&2
    refuse "$failure (exit $status, log: ${log#"$repo"/})."
  fi
}

# lock_or_wait FILE WHO: takes the lock until this process exits, saying so when it has to wait.
lock_or_wait() {
  local descriptor
  exec {descriptor}>"$1"
  if ! flock -n "$descriptor"; then
    say "waiting for $2 to finish"
    flock -w 1200 "$descriptor" || refuse "$2 still holds $1 after 20 minutes."
  fi
  lock_descriptor=$descriptor
}

unlock() { exec {lock_descriptor}>&-; }
