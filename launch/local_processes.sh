#!/usr/bin/env bash
# Starts one command as N processes of this host that train together, and starts them again if one of them is lost.
# Usage: launch/local_processes.sh [--restarts=R] [--fewer] [--logs=DIR] N -- COMMAND
#   COMMAND: a kdjax command that takes --coordinator, such as: .venv/bin/python -m kdjax.train_teacher --config=...
#   --restarts=R: start again R times after the loss of a process (default: 3).
#   --fewer: do not replace a lost process: start again on as many as are left and divide N.
#   --logs=DIR: folder of process-I.log, with what process I > 0 and the C++ parts of all print (default: a new one).
# Leaves with the exit code of process 0; 75 if a process was lost more often than R times.
set -uom pipefail  # -m: a process of its own group gets an interrupt once, and does not ignore it
restarts=3 fewer=0 logs="" count=""
while [ $# -gt 0 ]; do
  case "$1" in
    --restarts=*) restarts="${1#*=}" ;;
    --fewer) fewer=1 ;;
    --logs=*) logs="${1#*=}" ;;
    --) shift; break ;;
    -*) echo "kdjax: unknown flag $1. There are: --restarts, --fewer, --logs." >&2; exit 2 ;;
    *) count="$1" ;;
  esac
  shift
done
case "$count" in ''|*[!0-9]*|0) echo "kdjax: usage: launch/local_processes.sh N -- COMMAND" >&2; exit 2 ;; esac
[ $# -gt 0 ] || { echo "kdjax: there is no command after '--'." >&2; exit 2; }
[ -n "$logs" ] || logs="$(mktemp -d "${TMPDIR:-/tmp}/kdjax-processes.XXXXXX")"
mkdir -p "$logs"
exec 3>&2 2>/dev/null  # bash itself has things to say about jobs that are killed
say() { echo "kdjax: $1" >&3; }
pids=()
forward() { for pid in "${pids[@]}"; do kill -s "$1" "$pid" 2>/dev/null; done; }
trap 'forward INT; stopped=1' INT
trap 'forward TERM; stopped=1' TERM
trap 'forward KILL' EXIT
stopped=0

free_port() {  # the system chooses one; it is bound again within a second
  local port
  while :; do
    port=$((20000 + RANDOM % 40000))
    (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null || { echo "$port"; return; }
  done
}

start_all() {
  local n="$1" port i; shift
  port="$(free_port)"
  pids=() codes=()
  for ((i = 0; i < n; i++)); do
    local flags=("--coordinator=127.0.0.1:$port" "--processes=$n" "--process=$i")
    if [ "$n" -eq 1 ]; then flags=("--processes=1"); fi
    if [ "$i" -eq 0 ]; then
      KDJAX_NATIVE_LOG="$logs/process-$i.log" "$@" "${flags[@]}" 2>&3 &
    else
      KDJAX_NATIVE_LOG="$logs/process-$i.log" "$@" "${flags[@]}" >>"$logs/process-$i.log" 2>&1 &
    fi
    pids+=("$!") codes+=("")
  done
}

# Notes the exit codes of the processes that have ended; succeeds while one is running.
look() {
  local i running=1
  for i in "${!pids[@]}"; do
    [ -z "${codes[$i]}" ] || continue
    if kill -0 "${pids[$i]}" 2>/dev/null; then running=0; else wait "${pids[$i]}" 2>/dev/null; codes[i]=$?; fi
  done
  return "$running"
}

# A code that a process leaves with because another one is lost, or because it was killed itself.
is_loss() { case "$1" in 75|134|137|139) return 0 ;; *) [ "$1" -gt 128 ] && [ "$1" -ne 130 ] && [ "$1" -ne 143 ] ;; esac; }

# Prints the number of the process whose end ended the others: one that was killed rather than one that noticed.
first_bad() {
  local i found=""
  for i in "${!codes[@]}"; do
    case "${codes[$i]}" in ''|0) ;; 75|134) found="${found:-$i}" ;; *) echo "$i"; return ;; esac
  done
  echo "$found"
}

# Waits until all have ended, and no longer than some seconds after the first one that failed.
wait_all() {
  local patience=0
  bad=""
  while look; do
    [ -n "$bad" ] || bad="$(first_bad)"
    if [ -n "$bad" ]; then
      # Long enough for a save to end, or for processes that leave by themselves.
      patience=$((patience + 1))
      if is_loss "${codes[$bad]}"; then [ "$patience" -lt 15 ] || forward KILL
      else [ "$patience" -lt 50 ] || forward KILL; fi
    fi
    sleep 0.2
  done
  [ -n "$bad" ] || bad="$(first_bad)"
}

say_what_failed() {
  local bad="$1" code="${codes[$1]}" line=""
  if is_loss "$code"; then
    [ "$code" -eq 75 ] && [ "$bad" -eq 0 ] && return  # it has said so itself
    local how="left with code $code"
    [ "$code" -gt 128 ] && how="ended by signal $((code - 128))"
    say "process $bad of ${#codes[@]} is lost ($how); the logs are in $logs."
  elif [ "$bad" -gt 0 ]; then
    line="$(sed -n 's/^kdjax: //p' "$logs/process-$bad.log" | tail -1)"
    say "${line:-process $bad left with code $code; its log is $logs/process-$bad.log.}"
  fi
}

total="$count"
while :; do
  start_all "$count" "$@"
  wait_all
  [ -n "$bad" ] || exit 0
  code="${codes[$bad]}"
  if ! is_loss "$code"; then
    [ "${codes[0]}" != 0 ] && ! is_loss "${codes[0]}" && exit "${codes[0]}"
    say_what_failed "$bad"
    exit "$code"
  fi
  say_what_failed "$bad"
  [ "$stopped" -eq 0 ] || exit 130
  [ "$restarts" -gt 0 ] || { say "a process was lost too often; repeat the command to go on."; exit 75; }
  restarts=$((restarts - 1))
  if [ "$fewer" -eq 1 ] && [ "$count" -gt 1 ]; then
    count=$((count - 1))
    while [ $((total % count)) -ne 0 ]; do count=$((count - 1)); done
  fi
  say "starting again on $count processes."
done
