#!/bin/sh
# The tests that want a GPU, then what it gains; both with the python that is there and this source.
# What fails does not keep the rest from being measured: ends with 1 then.
set -eu
cd "$(dirname "$0")/.."
PYTHONPATH="$PWD/src${PYTHONPATH:+:$PYTHONPATH}"
export PYTHONPATH
python=${PYTHON:-python3}
if [ -x .venv/bin/python ]; then python=${PYTHON:-.venv/bin/python}; fi
$python -c 'import sys, torch; sys.exit(0 if torch.cuda.is_available() else "make gpu: torch sees no GPU here")'
device=$($python -c 'import re, torch; print(re.sub("[^a-z0-9]+", "-", torch.cuda.get_device_name().lower()))')
side_by_side=$($python -c 'import xdist; print("-n 8 -p no:benchmark")' 2> /dev/null || true)
failed=0
# Other versions of what the tests import warn of other things.
$python -m pytest -q -W default $side_by_side -m gpu $(grep -rlE "mark\.gpu" tests --include="*.py") || failed=1
mkdir -p bench/results
for dtype in bfloat16 float32; do
	$python -m spiritlevel bench norms --device cuda --dtype "$dtype" --out "bench/results/$device-norms-$dtype.json" ${ARGS:-} || failed=1
done
exit $failed
