#!/usr/bin/env bash
# Runs a study and writes its report. Runs that have finished are skipped.
# Usage: launch/study.sh NAME[:ARGUMENT] [FLAGS]
#   NAME: a file in configs/studies without '.py'; an example is teacher_loss_table:vgg13,vgg8.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
[ $# -gt 0 ] || { echo "kdjax: NAME is missing. There are: $(cd configs/studies && ls -- *.py | grep -v __init__ | sed 's/\.py$//' | xargs)." >&2; exit 2; }
study="$1"; shift
launch/setup.sh
name="${study%%:*}" argument="${study#"${study%%:*}"}"
exec "${KDJAX_VENV:-.venv}/bin/python" -m kdjax.run_study --config="configs/studies/$name.py$argument" --store="runs/$name" "$@"
