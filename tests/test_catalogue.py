"""No sentence is missing, none is left over, and each tells what it is given."""

from __future__ import annotations

import re
from pathlib import Path
from string import Formatter

import pytest

import spiritlevel
from spiritlevel.catalogue import keys, say, sentence
from spiritlevel.errors import UsageError
from spiritlevel.study.claims import CLAIMS, STATUSES

SOURCE = Path(spiritlevel.__file__).parent


def placeholders(key: str) -> set[str]:
    return {name for _, name, _, _ in Formatter().parse(sentence(key)) if name is not None}


def test_a_key_that_is_not_there_raises():
    with pytest.raises(KeyError):
        say("page.no_such_sentence")


def test_a_language_that_is_not_there_is_named():
    with pytest.raises(UsageError, match="got language 'xx'"):
        say("page.title", "xx")


def test_values_are_filled_in():
    assert say("terminal.page", path="a/b.html") == "page: a/b.html"


@pytest.mark.parametrize("claim", CLAIMS)
def test_each_claim_has_all_its_sentences(claim):
    wanted = {"title", "measured", "found", "literature", "rule"}
    wanted |= {f"meaning.{status.replace(' ', '_')}" for status in STATUSES}
    assert {f"claims.{claim}.{name}" for name in wanted} <= set(keys())


@pytest.mark.parametrize("claim", CLAIMS)
def test_each_rule_tells_all_its_thresholds(claim):
    assert placeholders(f"claims.{claim}.rule") == set(CLAIMS[claim].RULE)


def test_every_sentence_is_used():
    """The last word of each key stands in the source, or all its parts do."""
    text = "\n".join(
        path.read_text() for path in SOURCE.rglob("*") if path.suffix in (".py", ".j2", ".js")
    )
    words = set(re.findall(r"[A-Za-z_0-9]+", text.replace("-", "_")))
    composed = re.compile(r"^(meaning|accuracy|steps)$")
    unused = []
    for key in keys():
        last = key.rpartition(".")[2].replace("-", "_")
        parts = last.split("_")
        if last not in words and not all(p in words for p in parts) and not composed.match(last):
            unused.append(key)
    assert unused == []


def test_every_plain_key_in_the_source_exists():
    tables = {key.partition(".")[0] for key in keys()}
    pattern = re.compile(rf'"((?:{"|".join(sorted(tables))})\.[a-z_0-9.-]+)"')
    for path in SOURCE.rglob("*.py"):
        for key in pattern.findall(path.read_text()):
            if key.endswith((".js", ".css", ".j2")):
                continue
            known = key in keys() or any(name.startswith(f"{key}.") for name in keys())
            assert known, f"{path.name}: {key}"
