import pytest

from spiritlevel.catalogue import keys
from spiritlevel.errors import UsageError
from spiritlevel.report.words import plain, say

QUANTITY = "claims.stabilises.accuracy"  # a sentence with HTML of its own


def test_values_are_escaped_and_the_sentence_is_not():
    said = say([QUANTITY, {"norm": "<b>&\"'", "lr": "1"}])
    assert "<em>&lt;b&gt;&amp;&#34;&#39;</em> at rate 1" in said


def test_plain_drops_the_sentences_html_and_keeps_the_values_text():
    said = plain([QUANTITY, {"norm": "<b>", "lr": "1"}])
    assert said.endswith("<b> at rate 1")
    assert "em>" not in said


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("page.nowhere", "'page.nowhere', which the catalogue does not have"),
        (["page.footer", {}], "'page.footer' with values for \\[\\], wanted one for 'version'"),
        (["page.footer"], "wanted a catalogue key or"),
        (7, "got 7 for a text"),
    ],
)
def test_errors_name_the_text_and_what_it_lacks(text, message):
    with pytest.raises(UsageError, match=message):
        say(text)


def test_every_arm_has_a_name():
    from typing import get_args

    from spiritlevel.report.story import Arm

    assert {f"arms.{arm}" for arm in get_args(Arm)} == {k for k in keys() if k.startswith("arms.")}
