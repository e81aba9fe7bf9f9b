#!/usr/bin/env bash
# A Chromium for the browser tests: the one that is here, else Debian's package, else Playwright's own.
set -uo pipefail
cd "$(dirname "$0")/.."
.venv/bin/python tests/chromium.py >/dev/null 2>&1 && exit 0

as_root=""
[ "$(id -u)" = 0 ] || as_root="sudo -n"
if command -v apt-get >/dev/null; then
  echo "browser: installing Debian's package chromium"
  $as_root env DEBIAN_FRONTEND=noninteractive sh -c 'apt-get update -qq && apt-get install -y -qq chromium' >/dev/null 2>&1
  .venv/bin/python tests/chromium.py >/dev/null 2>&1 && exit 0
fi
.venv/bin/python -m playwright install chromium >/dev/null 2>&1
.venv/bin/python tests/chromium.py >/dev/null 2>&1 && exit 0
echo "browser: no Chromium, and neither apt-get nor Playwright could install one: the browser tests will be skipped (failed under CI)"
