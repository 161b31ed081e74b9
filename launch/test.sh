#!/usr/bin/env bash
# The whole test suite.
# Usage: launch/test.sh [--slow] [PYTEST ARGUMENTS]     --slow: also the tests marked slow, compiled as users compile.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
launch/setup.sh test
chosen=(-m "not slow")
if [ "${1:-}" = "--slow" ]; then
  chosen=(); shift
else
  # Thousands of small programs run once each: optimising them takes longer than it saves.
  export JAX_DISABLE_MOST_OPTIMIZATIONS="${JAX_DISABLE_MOST_OPTIMIZATIONS:-1}"
fi
# Two processes, a file to each in turn; more would fight over the emulated devices' threads.
exec .venv/bin/python -m pytest tests -n 2 --dist loadfile --no-loadscope-reorder ${chosen[@]+"${chosen[@]}"} "$@"
