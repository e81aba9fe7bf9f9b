#!/usr/bin/env bash
# tools/uv.sh ARGS...: uv, told of the wheels, the index and the certificates that pip is told of, as it does not read
# pip's configuration. PYTHON names the one that has uv.
set -euo pipefail
python=${PYTHON:-"$(dirname "$0")/../.venv/bin/python"}

pip_setting() { "$python" -m pip config list 2>/dev/null | sed -n "s/^[^=]*\.$1='\(.*\)'\$/\1/p" | head -n 1 | sed 's/\\n/ /g'; }

find_links=$(pip_setting find-links); index=$(pip_setting index-url); cert=$(pip_setting cert)
[ -z "$find_links" ] || export UV_FIND_LINKS=${UV_FIND_LINKS:-${find_links// /,}}
[ -z "$index" ] || export UV_DEFAULT_INDEX=${UV_DEFAULT_INDEX:-$index}
[ -z "$cert" ] || export SSL_CERT_FILE=${SSL_CERT_FILE:-$cert}
exec "$python" -m uv "$@"
