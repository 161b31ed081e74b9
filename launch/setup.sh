#!/usr/bin/env bash
# Creates .venv and installs kdjax into it with pinned versions. If that is done already, it does nothing, also offline.
# Usage: launch/setup.sh [EXTRA]
#   EXTRA: an extra of setup.py, such as 'test'. Set PYTHON=... to choose the interpreter.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
extra="${1:-}"
target=".${extra:+[$extra]}"

is_new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; }

find_python() {
  for candidate in ${PYTHON:+"$PYTHON"} python3 python3.11 python3.12 python3.13 python3.14; do
    if is_new_enough "$candidate"; then echo "$candidate"; return; fi
  done
  echo "kdjax: Python 3.11 or later was not found; install it, or set PYTHON=/path/to/python3.11." >&2
  exit 2
}

# The name of the stamp depends on everything that changes an installation: a second call stops here, also offline.
stamp=".venv/kdjax-$(cat setup.py constraints.txt | cksum | cut -d' ' -f1)${extra:+-$extra}"
if [ -x .venv/bin/python ] && [ -e "$stamp" ]; then exit 0; fi

if [ ! -x .venv/bin/python ]; then
  python="$(find_python)"
  echo "kdjax: creating .venv with $("$python" --version)" >&2
  "$python" -m venv .venv || { rm -rf .venv; echo "kdjax: Python has no venv module; on Debian: apt install python3-venv" >&2; exit 2; }
fi
echo "kdjax: installing $target into .venv (a minute or two, once)" >&2
.venv/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable "$target" || {
  echo "kdjax: the installation failed; the lines above are pip's message. Is there a network?" >&2
  exit 1
}
touch "$stamp"
