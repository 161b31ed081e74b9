#!/usr/bin/env bash
# Trains on a slice of Cloud TPUs: makes the slice, copies this tree to all of its hosts, and runs one command on them.
# Usage: launch/tpu_pod.sh [--dry_run] FLAGS ACTION [-- COMMAND]
#   ACTION       create | install | run | stop | fetch | delete | all (create, install, run and fetch)
#   COMMAND      what every host runs, such as: .venv/bin/python -m kdjax.train_teacher --config=configs/mse_teacher.py
#   --name=NAME --zone=ZONE                    the slice; an existing one is used again
#   --type=TYPE --version=VERSION              needed by create, such as --type=v4-32 --version=tpu-ubuntu2204-base
#   --project=ID                               the project, if gcloud has no default
#   --spot --queued                            a slice that may be taken back; wait in the queue for one
#   --store=DIR                                what fetch brings back from worker 0 (default: runs)
#   --dry_run                                  prints every command and runs none
# The hosts find one another by themselves. A slice that was taken back is made again by the same line, and the run goes
# on from its last checkpoint if --store of COMMAND is a place that outlives the slice, or after 'fetch' brought it here.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
dry=0 name="" zone="" type="" version="" project="" spot=0 queued=0 store="runs" action=""
fail() { echo "kdjax: $1" >&2; exit 2; }
while [ $# -gt 0 ]; do
  case "$1" in
    --dry_run) dry=1 ;;
    --name=*) name="${1#*=}" ;;
    --zone=*) zone="${1#*=}" ;;
    --type=*) type="${1#*=}" ;;
    --version=*) version="${1#*=}" ;;
    --project=*) project="${1#*=}" ;;
    --spot) spot=1 ;;
    --queued) queued=1 ;;
    --store=*) store="${1#*=}" ;;
    --) shift; break ;;
    -*) fail "unknown flag $1; 'head -13 launch/tpu_pod.sh' lists them." ;;
    *) [ -z "$action" ] || fail "there are two actions, '$action' and '$1'; write the command after '--'."; action="$1" ;;
  esac
  shift
done
[ -n "$name" ] && [ -n "$zone" ] || fail "--name=NAME and --zone=ZONE of the slice are missing."
case "$action" in
  create | install | run | stop | fetch | delete | all) ;;
  *) fail "the action must be create, install, run, stop, fetch, delete or all, not '$action'." ;;
esac
case "$action" in run | all) [ $# -gt 0 ] || fail "there is no command after '--'." ;; esac
case "$action" in create | all) [ -n "$type" ] && [ -n "$version" ] || fail "--type=TYPE and --version=VERSION are missing." ;; esac
where=(--zone="$zone" ${project:+--project="$project"})

do_it() {  # runs a command, or prints it so that a shell could read it
  if [ "$dry" = 1 ]; then printf '%q ' "$@"; echo; else "$@"; fi
}
exists() { [ "$dry" = 0 ] && gcloud compute tpus tpu-vm describe "$name" "${where[@]}" >/dev/null 2>&1; }
on_all() { do_it gcloud compute tpus tpu-vm ssh "$name" "${where[@]}" --worker=all --command="$1"; }

create() {
  if exists; then echo "kdjax: the slice '$name' exists and is used again." >&2; return; fi
  if [ "$queued" = 1 ]; then
    do_it gcloud compute tpus queued-resources create "$name" --node-id="$name" "${where[@]}" \
      --accelerator-type="$type" --runtime-version="$version" $([ "$spot" = 0 ] || echo --spot)
    echo "kdjax: the slice '$name' is in the queue; repeat with 'install' when gcloud says that it is ACTIVE." >&2
    [ "$action" = create ] || [ "$dry" = 1 ] || exit 0
  else
    do_it gcloud compute tpus tpu-vm create "$name" "${where[@]}" \
      --accelerator-type="$type" --version="$version" $([ "$spot" = 0 ] || echo --spot)
  fi
}

install() {
  local tree
  tree="$([ "$dry" = 1 ] && echo /tmp/kdjax.tar.gz || mktemp -t kdjax-XXXXXX.tar.gz)"
  do_it tar -czf "$tree" --exclude=./.git --exclude='./.venv*' --exclude=./runs --exclude=./data .
  do_it gcloud compute tpus tpu-vm scp "$tree" "$name:kdjax.tar.gz" "${where[@]}" --worker=all
  on_all "mkdir -p kdjax && tar -xzf kdjax.tar.gz -C kdjax && cd kdjax && launch/setup.sh && .venv/bin/python -m pip install --quiet --constraint constraints.txt 'jax[tpu]'"
  [ "$dry" = 1 ] || rm -f "$tree"
}

# gcloud prints what all hosts say; only the first process of kdjax says anything beyond errors.
run() { on_all "cd kdjax && $(printf '%q ' "$@")"; }
stop() { on_all "pkill -TERM -f 'python -m kdjax' || true"; }
fetch() { do_it gcloud compute tpus tpu-vm scp --recurse "$name:kdjax/$store" . "${where[@]}" --worker=0; }
delete() {
  if [ "$queued" = 1 ]; then do_it gcloud compute tpus queued-resources delete "$name" "${where[@]}" --force --quiet
  else do_it gcloud compute tpus tpu-vm delete "$name" "${where[@]}" --quiet; fi
}

[ "$dry" = 1 ] || command -v gcloud >/dev/null || fail "gcloud, the command line of Google Cloud, is not installed."
if [ "$action" = all ]; then create; install; run "$@"; fetch
elif [ "$action" = run ]; then run "$@"
else "$action"; fi
