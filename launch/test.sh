#!/usr/bin/env bash
# Checks the style and the types of the code and runs its tests.
# Usage: launch/test.sh [--oldest] [--slow | --check] [PYTEST ARGUMENTS]
#   --oldest           tests with Python 3.11, in .venv-oldest; otherwise .venv is tested, which has the newest Python
#   --slow             also runs the tests that are marked slow, with programs compiled as users compile them
#   --check            runs ruff and pyright and no test
#   PYTEST ARGUMENTS   are passed on, such as "-k identities" or a path below tests/; ruff and pyright are then skipped
# The exit code is not 0 if a check or a test fails. tests/README.md says more.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
if [ "${1:-}" = "--oldest" ]; then
  shift
  export KDJAX_VENV=.venv-oldest PYTHON=python3.11
fi
launch/setup.sh test
bin="${KDJAX_VENV:-.venv}/bin"

TYPED="kdjax/losses kdjax/analysis kdjax/distillation kdjax/store kdjax/studies kdjax/types.py kdjax/config.py"

# Runs all three checks, so that one call shows everything there is to correct; none of them needs a network.
check() {
  local failed=0
  "$bin/ruff" check . || failed=1
  "$bin/ruff" format --check . || failed=1
  # The variable keeps pyright from asking on the network whether there is a newer release.
  PYRIGHT_PYTHON_IGNORE_WARNINGS=1 "$bin/pyright" --pythonpath "$bin/python" --level error $TYPED || failed=1
  return $failed
}

mode=""
case "${1:-}" in --slow | --check) mode="$1"; shift ;; esac
if [ $# -eq 0 ]; then
  check || { echo "kdjax: the checks above failed, so no test was run; 'launch/test.sh tests' runs the tests alone" >&2; exit 1; }
fi
if [ "$mode" = "--check" ]; then exit 0; fi

chosen=()
if [ "$mode" != "--slow" ]; then
  chosen=(-m "not slow")
  # Thousands of small programs run once each, so most of the time is compilation: optimising takes longer than it
  # saves, and so do XLA's newer emitters of fused loops. The older ones contract a product and a sum into one rounding
  # in one program and not in another, so that equal expressions differ in the last bit; AVX has no such instruction.
  export JAX_DISABLE_MOST_OPTIMIZATIONS="${JAX_DISABLE_MOST_OPTIMIZATIONS:-1}"
  # A release of XLA that does not know a flag, or a processor that it does not suit, goes without it.
  for flag in --xla_cpu_use_fusion_emitters=false --xla_cpu_max_isa=AVX; do
    flags="${XLA_FLAGS:+$XLA_FLAGS }$flag"
    if JAX_PLATFORMS=cpu XLA_FLAGS="$flags" "$bin/python" -c 'import jax; jax.devices()' >/dev/null 2>&1; then
      export XLA_FLAGS="$flags"
    fi
  done
fi
# Two processes; each takes one file after the other. More would fight over the threads of the emulated devices.
exec "$bin/python" -m pytest -n 2 --dist loadfile --no-loadscope-reorder ${chosen[@]+"${chosen[@]}"} "$@"
