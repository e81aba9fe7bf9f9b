import copy
import math

import pytest
from story import example_story

from spiritlevel.errors import UsageError
from spiritlevel.report.check import check


def test_a_whole_story_passes_unchanged():
    story = example_story()
    before = copy.deepcopy(story)
    assert check(story) is story
    assert story == before


def test_tuples_do_for_lists_and_whole_numbers_for_numbers():
    story = example_story()
    story["run"]["seconds"] = 271
    story["data"]["classes"] = tuple(story["data"]["classes"])
    check(story)


def places(value, path=()):
    """The path of every dict key in the story."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, item in items:
        if isinstance(value, dict):
            yield (*path, key)
        if isinstance(item, dict | list):
            yield from places(item, (*path, key))


def inside(story, path):
    for key in path:
        story = story[key]
    return story


# Texts and the environment choose their keys, low and high come together, a range may be left out,
# and without its kind a panel is not known at all.
FREE = {"text", "environment", "low", "high", "range", "kind"}


def test_whatever_is_missing_is_named():
    seen = set()
    for path in places(example_story()):
        kind = tuple(key for key in path if isinstance(key, str))
        if kind in seen or FREE & set(path):
            continue
        seen.add(kind)
        story = example_story()
        del inside(story, path[:-1])[path[-1]]
        with pytest.raises(UsageError, match=f"without {path[-1]}; wanted"):
            check(story)
    assert len(seen) > 60


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("run", "extra"), 1, "got story.run with extra, unknown to the page"),
        (("run", "cells"), True, "got True for story.run.cells, wanted a whole number"),
        (("run", "seconds"), math.inf, "got inf for story.run.seconds, wanted a finite number"),
        (("data", "classes"), "cat", "got 'cat' for story.data.classes, wanted a list"),
        (("environment", "python"), 3, r"got 3 for story.environment\['python'\], wanted a string"),
        (("claims", 0, "status"), "maybe", "got 'maybe' for .*wanted 'supported' or 'partly'"),
        (("claims", 0, "headline", "interval"), 3, "wanted a string or None"),
        (
            ("claims", 0, "figures", 0, "panels", 0, "kind"),
            "pie",
            "wanted lines of .* or heatmap of",
        ),
        (
            ("claims", 0, "figures", 0, "panels", 0, "series", 0, "arm"),
            "x",
            r"arm, wanted 'none' or",
        ),
        (
            ("claims", 0, "figures", 0, "panels", 0, "series", 0, "y", 3),
            math.nan,
            r"y\[3\], wanted",
        ),
        (("claims",), [], "got 0 claims in the story, wanted all 5"),
        (("examples",), [], "got the examples none, wanted arithmetic, shift, scale, bell"),
    ],
)
def test_what_is_wrong_is_named(path, value, message):
    story = example_story()
    inside(story, path[:-1])[path[-1]] = value
    with pytest.raises(UsageError, match=message):
        check(story)


@pytest.mark.parametrize("key", ["x", "y", "low", "high"])
def test_lengths_agree(key):
    story = example_story()
    story["claims"][0]["figures"][0]["panels"][0]["series"][0][key].pop()
    with pytest.raises(UsageError, match="series 0 of panel 0 of figure 'percentiles'"):
        check(story)


def test_low_needs_high():
    story = example_story()
    del story["claims"][0]["figures"][0]["panels"][0]["series"][0]["high"]
    with pytest.raises(UsageError, match="low and high both or neither"):
        check(story)


def test_a_heatmap_is_rectangular():
    story = example_story()
    story["examples"][2]["figures"][0]["panels"][0]["z"][4].pop()
    with pytest.raises(
        UsageError, match=r"got 16 rows of \[50, 51\] values in .*, wanted 16 rows of 51"
    ):
        check(story)
