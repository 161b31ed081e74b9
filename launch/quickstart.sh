#!/usr/bin/env bash
# Trains teachers and students on the embedded digits and prints a table, in minutes on a laptop.
# Usage: launch/quickstart.sh [--smoke] [FLAGS]
#   --smoke: runs all of it in seconds on a tiny synthetic data set.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
launch/setup.sh
study="configs/studies/quickstart.py" store="runs/quickstart"
if [ "${1:-}" = "--smoke" ]; then study+=":smoke" store="runs/quickstart-smoke"; shift; fi
exec "${KDJAX_VENV:-.venv}/bin/python" -m kdjax.run_study --config="$study" --store="$store" "$@"
