#!/usr/bin/env bash
# Submits one command to Slurm that trains on several nodes, as one process a node or one a GPU.
# Usage: launch/slurm.sh [--dry_run] [--nodes=N] [--gpus=G] [--per_gpu] [--time=HH:MM:SS] [SBATCH FLAGS] -- COMMAND
#   COMMAND      such as: .venv/bin/python -m kdjax.train_teacher --config=configs/mse_teacher.py
#   --nodes=N    nodes (default: 1); --gpus=G: GPUs of each node (default: 1)
#   --per_gpu    one process a GPU instead of one a node
#   --dry_run    prints the job's script and submits nothing
#   SBATCH FLAGS such as --partition=P and --account=A go to sbatch
# The store must be on a disk that all nodes share. Before its time is over the job gets SIGTERM, saves, and is queued again.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
dry=0 nodes=1 gpus=1 per_gpu=0 limit="" more=()
fail() { echo "kdjax: $1" >&2; exit 2; }
while [ $# -gt 0 ]; do
  case "$1" in
    --dry_run) dry=1 ;;
    --nodes=*) nodes="${1#*=}" ;;
    --gpus=*) gpus="${1#*=}" ;;
    --per_gpu) per_gpu=1 ;;
    --time=*) limit="${1#*=}" ;;
    --) shift; break ;;
    --*=*) more+=("$1") ;;
    *) fail "unknown argument '$1'; write the command after '--', and flags of sbatch as --flag=value." ;;
  esac
  shift
done
[ $# -gt 0 ] || fail "there is no command after '--'."
for number in "$nodes" "$gpus"; do
  case "$number" in '' | *[!0-9]* | 0) fail "--nodes and --gpus must be whole numbers from 1 on, not '$number'." ;; esac
done
tasks=1
if [ "$per_gpu" = 1 ]; then tasks="$gpus"; fi

script() {
  echo '#!/usr/bin/env bash'
  echo "#SBATCH --job-name=kdjax"
  echo "#SBATCH --nodes=$nodes"
  echo "#SBATCH --ntasks-per-node=$tasks"
  echo "#SBATCH --gpus-per-node=$gpus"
  echo "#SBATCH --signal=TERM@120"
  echo "#SBATCH --requeue"
  echo "#SBATCH --output=kdjax-%j.log"
  [ -z "$limit" ] || echo "#SBATCH --time=$limit"
  for flag in ${more[@]+"${more[@]}"}; do echo "#SBATCH $flag"; done
  printf 'cd %q\n' "$PWD"
  echo "launch/setup.sh"
  # The processes find one another by the variables of srun. One a GPU sees its own GPU alone.
  printf 'srun --kill-on-bad-exit=1 %s' "$([ "$per_gpu" = 0 ] || echo '--gpus-per-task=1 ')"
  printf '%q ' "$@"
  # 143: it was stopped by SIGTERM and has saved; 75: a process was lost. The same command goes on from there.
  printf '\ncode=$?\nif [ "$code" = 143 ] || [ "$code" = 75 ]; then scontrol requeue "$SLURM_JOB_ID"; fi\nexit "$code"\n'
}

if [ "$dry" = 1 ]; then script "$@"; exit 0; fi
command -v sbatch >/dev/null || fail "sbatch, the command that submits jobs to Slurm, is not installed."
script "$@" | sbatch
