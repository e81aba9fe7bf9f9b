"""`[tool.spiritlevel]` of a pyproject.toml."""

from __future__ import annotations

import pytest

from spiritlevel.doctor.config import Settings, settings
from spiritlevel.errors import UsageError


def told(tmp_path, text: str) -> Settings:
    (tmp_path / "pyproject.toml").write_text(text)
    return settings(tmp_path)


def test_all_keys(tmp_path):
    found = told(
        tmp_path,
        '[tool.spiritlevel]\nselect = ["SL2"]\nignore = ["SL203"]\nfail-on = "error"\n'
        'baseline = "accepted.json"\n',
    )
    assert found == Settings(("SL2",), ("SL203",), "error", tmp_path / "accepted.json")


def test_it_is_found_upward(tmp_path):
    told(tmp_path, '[tool.spiritlevel]\nignore = ["SL106"]\n')
    inner = tmp_path / "a" / "b"
    inner.mkdir(parents=True)
    (inner / "pyproject.toml").write_text("[tool.other]\nx = 1\n")  # says nothing of us
    assert settings(inner).ignore == ("SL106",)


def test_none_is_all_by_default(tmp_path):
    assert told(tmp_path, "[project]\nname = 'x'\n") == Settings()


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("selct = []", "got 'selct' in .*; its keys are: select, .* Did you mean select?"),
        ("select = 'SL2'", r'got select = .SL2.*wanted a list of rules, as select = \["SL2"'),
        ("ignore = [3]", "got ignore = "),
        ("fail-on = 'never'", "got fail-on = 'never' .* one of: error, warning, info"),
        ("fail-on = 3", "got fail-on = 3"),
        ("baseline = 3", "got baseline = 3 .* the name of a file"),
        ("select = [", "which cannot be read"),
    ],
)
def test_what_is_wrong_is_told(tmp_path, line, wanted):
    with pytest.raises(UsageError, match=wanted):
        told(tmp_path, f"[tool.spiritlevel]\n{line}\n")


def test_it_must_be_a_table(tmp_path):
    with pytest.raises(UsageError, match=r"got tool.spiritlevel = 3 .* wanted a table"):
        told(tmp_path, "[tool]\nspiritlevel = 3\n")
