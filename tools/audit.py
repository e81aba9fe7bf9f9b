"""`make audit`: what is known of the pinned versions, by pip-audit.

Exit code 0: every version was looked up and none is known to be vulnerable; 1: some are; 2: the
database did not answer for all. pip-audit itself says "No known vulnerabilities found", and exits
with 0, where not one version could be looked up.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

PINS = Path(__file__).resolve().parents[1] / "constraints.txt"
SERVICES = ("pypi", "osv")


def judge(dependencies: list[dict[str, Any]]) -> tuple[int, list[str]]:
    """The exit code and its lines, of pip-audit's `dependencies`."""
    skipped = [each["name"] for each in dependencies if "skip_reason" in each]
    lines = [
        f"{each['name']} {each['version']}: {flaw['id']}, mended in "
        f"{', '.join(flaw['fix_versions']) or 'no version yet'}"
        for each in dependencies
        for flaw in each.get("vulns", [])
    ]
    looked_up = len(dependencies) - len(skipped)
    if lines:
        return 1, lines
    if not looked_up:
        return 2, ["the database knows none of the versions: nothing was audited"]
    if skipped:
        return 2, [f"{looked_up} versions audited, none vulnerable; not known: {' '.join(skipped)}"]
    return 0, [f"{looked_up} versions audited, none vulnerable"]


def ask(service: str) -> tuple[int, list[str]]:
    """What one database says."""
    command = [
        *(sys.executable, "-m", "pip_audit", "-r", str(PINS), "--no-deps", "--disable-pip"),
        *("--format", "json", "--progress-spinner", "off", "--vulnerability-service", service),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if not done.stdout.startswith("{"):
        last = (done.stderr.strip().splitlines() or ["no word"])[-1]
        return 2, [f"the database does not answer: nothing was audited ({last[:160]})"]
    return judge(json.loads(done.stdout)["dependencies"])


def main() -> int:
    """The worst that a database says of what it knows; 2 where none knows all."""
    codes = set()
    for service in SERVICES:
        code, lines = ask(service)
        print(*(f"{service}: {line}" for line in lines), sep="\n")
        codes.add(code)
    return next(code for code in (1, 0, 2) if code in codes)


if __name__ == "__main__":
    sys.exit(main())
