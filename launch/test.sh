#!/usr/bin/env bash
# The whole test suite.
# Usage: launch/test.sh [--slow] [PYTEST ARGUMENTS]     --slow: also the tests marked slow.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
launch/setup.sh test
chosen=(-m "not slow")
if [ "${1:-}" = "--slow" ]; then chosen=(); shift; fi
exec .venv/bin/python -m pytest tests ${chosen[@]+"${chosen[@]}"} "$@"
