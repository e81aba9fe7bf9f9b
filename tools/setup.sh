#!/usr/bin/env bash
# tools/setup.sh EXTRAS: a virtual environment in .venv with spiritlevel and EXTRAS, at the versions of constraints.txt.
# uv takes seconds where pip takes a minute; pip is the fallback, and both read the same constraints.
set -euo pipefail
cd "$(dirname "$0")/.."

find_python() {
  # A Python that was named is taken or refused, never passed over.
  for candidate in ${PYTHON:-python3 python3.13 python3.12 python3.11}; do
    if "$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      echo "$candidate"; return
    fi
  done
  echo "set-up: no Python 3.11 or newer with venv found; install one (on Debian also python3-venv), or name it: PYTHON=/path/to/python3 make ..." >&2
  return 1
}

if [ ! -x .venv/bin/python ]; then
  python=$(find_python)
  echo "set-up: a virtual environment in .venv ($("$python" --version))"
  "$python" -m venv .venv
fi

echo "set-up: installing spiritlevel[$1] with the versions of constraints.txt"
# Where Python may not keep what it compiles, each process of a study and of the tests would compile torch anew.
[ -z "${PYTHONDONTWRITEBYTECODE:-}" ] || export UV_COMPILE_BYTECODE=1
if .venv/bin/python -m pip install --quiet -c constraints.txt uv >/dev/null 2>&1 \
   && PYTHON=.venv/bin/python tools/uv.sh pip install --quiet --python .venv/bin/python -c constraints.txt -e ".[$1]"; then
  exit 0
fi
echo "set-up: uv could not do it, pip takes over (about a minute)"
.venv/bin/python -m pip install --quiet -c constraints.txt -e ".[$1]"
