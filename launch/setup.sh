#!/usr/bin/env bash
# Creates .venv and installs kdjax into it with pinned versions. If that is done already, it does nothing, also offline.
# Usage: launch/setup.sh [EXTRA]
#   EXTRA: an extra of setup.py, such as 'test'.
#   PYTHON=... names the interpreter, KDJAX_VENV=... another folder than .venv; all scripts read the latter.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
extra="${1:-}"
target=".${extra:+[$extra]}"
venv="${KDJAX_VENV:-.venv}"

# The newest Python that kdjax is tested with comes first, since its jax is the fastest; a later one comes last.
PYTHONS="python3.13 python3.12 python3.11 python3 python3.14"

# A name on the PATH need not run: pyenv has one for every Python that it keeps, switched on or not. And a Python that
# runs need not be able to make an environment: on Debian that is a package of its own.
suits() { "$1" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; }

find_python() {
  for candidate in ${PYTHON:-$PYTHONS}; do
    if suits "$candidate"; then echo "$candidate"; return; fi
  done
  if [ -n "${PYTHON:-}" ]; then
    echo "kdjax: PYTHON=$PYTHON does not run, is older than 3.11 or lacks the modules venv and ensurepip." >&2
  else
    echo "kdjax: no Python 3.11 or later with the modules venv and ensurepip was found; install one (on Debian: apt install python3-venv), or set PYTHON=/path/to/python3.11." >&2
  fi
  exit 2
}

# The name of the stamp depends on everything that changes an installation: a second call stops here, also offline.
stamp="$venv/kdjax-$(cat setup.py constraints.txt | cksum | cut -d' ' -f1)${extra:+-$extra}"
if [ -x "$venv/bin/python" ] && [ -e "$stamp" ]; then exit 0; fi

if [ ! -x "$venv/bin/python" ]; then
  python="$(find_python)"
  echo "kdjax: creating $venv with $("$python" --version)" >&2
  "$python" -m venv "$venv" || { rm -rf "$venv"; echo "kdjax: $python could not create $venv; the lines above say why." >&2; exit 2; }
fi
echo "kdjax: installing $target into $venv (a minute or two, once)" >&2
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable "$target" || {
  echo "kdjax: the installation failed; the lines above are pip's message. Is there a network?" >&2
  exit 1
}
touch "$stamp"
