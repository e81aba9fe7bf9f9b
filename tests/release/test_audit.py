"""`make audit` never takes silence for a good answer."""

import importlib.util
from pathlib import Path

import pytest

spec = importlib.util.spec_from_file_location(
    "audit_tool", Path(__file__).parents[2] / "tools" / "audit.py"
)
audit = importlib.util.module_from_spec(spec)
spec.loader.exec_module(audit)

# As `pip-audit --format json` writes them.
FOUND = {"name": "jinja2", "version": "3.1.6", "vulns": []}
FLAWED = {
    "name": "pillow",
    "version": "9.0.0",
    "vulns": [{"id": "PYSEC-2022-10", "fix_versions": ["9.0.1"], "aliases": []}],
}
UNKNOWN = {"name": "torch", "skip_reason": "Dependency not found on PyPI and could not be audited"}


@pytest.mark.parametrize(
    ("dependencies", "code", "told"),
    [
        ([FOUND], 0, "1 versions audited, none vulnerable"),
        ([FOUND, FLAWED, UNKNOWN], 1, "pillow 9.0.0: PYSEC-2022-10, mended in 9.0.1"),
        ([FOUND, UNKNOWN], 2, "1 versions audited, none vulnerable; not known: torch"),
        ([UNKNOWN], 2, "the database knows none of the versions: nothing was audited"),
        ([], 2, "the database knows none of the versions: nothing was audited"),
    ],
)
def test_what_an_answer_comes_to(dependencies, code, told):
    assert audit.judge(dependencies) == (code, [told])


@pytest.mark.slow
def test_pip_audit_is_asked_and_whatever_it_says_is_told():
    code, lines = audit.ask("pypi")
    assert code in (0, 1, 2)
    assert lines
    assert ("audited" in lines[0]) or code == 1
