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


# Texts and the environment choose their keys, low and high come together, as do controls and
# frames; these may be left out, and without its kind a panel is not known at all.
FREE = {"text", "environment", "low", "high", "range", "kind", "controls", "frames"}
FREE |= {"summary", "records", "networks", "holds"}


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
        (("claims", 0, "networks", 0, "status"), "maybe", "status, wanted 'supported' or"),
        (("claims", 1, "figures", 1, "controls", 0, "kind"), "knob", "wanted slider or choice of"),
        (("claims", 1, "figures", 1, "frames", 3, 0, "x", "log"), 1, r"frames\[3\]\[0\].x.log, w"),
        (("records", 0, "key"), 3, r"got 3 for story.records\[0\].key, wanted a string"),
        (("live",), {"seconds": 5}, "got story.live without cells, done, left, share"),
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


def played(story):
    return story["claims"][1]["figures"][1]


def test_what_may_be_left_out_may_be_left_out():
    story = example_story()
    del played(story)["controls"], played(story)["frames"], played(story)["summary"]
    for claim in story["claims"]:
        del claim["networks"], claim["headline"]["records"]
        for part in claim["parts"]:
            del part["records"]
    del story["claims"][1]["figures"][0]["records"], story["records"]
    check(story)
    assert check(story | {"live": None}) == story | {"live": None}


@pytest.mark.parametrize("key", ["controls", "frames"])
def test_controls_and_frames_come_together(key):
    story = example_story()
    del played(story)[key]
    with pytest.raises(UsageError, match="got controls or frames alone in figure 'play'"):
        check(story)


def test_a_control_starts_at_one_of_its_values():
    story = example_story()
    played(story)["controls"][1]["start"] = 4
    with pytest.raises(UsageError, match="got start 4 for a control of figure 'play' with 4 val"):
        check(story)


def test_there_is_a_frame_for_each_combination():
    story = example_story()
    played(story)["frames"].pop()
    with pytest.raises(UsageError, match="got 11 frames in figure 'play', wanted 12"):
        check(story)


@pytest.mark.parametrize("other", [None, 0])
def test_the_panels_are_the_frame_at_the_start(other):
    story = example_story()
    frames = played(story)["frames"]
    frames[2] = None if other is None else frames[other]
    with pytest.raises(UsageError, match="got frame 2 of figure 'play', at which its controls"):
        check(story)


def test_frames_are_alike_in_kind_and_scale():
    story = example_story()
    frames = played(story)["frames"]
    frames[5] = frames[5][:1]
    with pytest.raises(UsageError, match=r"got frame 5 of figure 'play' with .*, wanted .* start"):
        check(story)
    story = example_story()
    story["claims"][1]["figures"][1]["frames"][5][0]["y"]["log"] = False
    with pytest.raises(UsageError, match="got frame 5 of figure 'play' with"):
        check(story)


def test_lengths_agree_in_every_frame():
    story = example_story()
    played(story)["frames"][5][0]["series"][1]["low"].pop()
    with pytest.raises(UsageError, match="series 1 of panel 0 in frame 5 of figure 'play'"):
        check(story)


def test_a_figure_is_named_once():
    story = example_story()
    story["claims"][2]["figures"].append(story["claims"][0]["figures"][0])
    with pytest.raises(UsageError, match="got the figure 'percentiles' twice"):
        check(story)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (("claims", 0, "headline"), "for the headline of claim 'stabilises', wanted .* story's 9"),
        (("claims", 0, "networks", 1, "headline"), "for a network of claim 'stabilises'"),
        (("claims", 0, "parts", 2), "for part 2 of claim 'stabilises'"),
        (("claims", 1, "figures", 0), "for figure 'rates'"),
        (("examples", 2, "figures", 0), "for figure 'maps'"),
    ],
)
@pytest.mark.parametrize("index", [9, -1])
def test_records_are_there(path, message, index):
    story = example_story()
    inside(story, path)["records"] = [0, index]
    with pytest.raises(UsageError, match=f"got record {index} {message}"):
        check(story)


def test_a_heatmap_is_rectangular():
    story = example_story()
    story["examples"][2]["figures"][0]["panels"][0]["z"][4].pop()
    with pytest.raises(
        UsageError, match=r"got 16 rows of \[50, 51\] values in .*, wanted 16 rows of 51"
    ):
        check(story)
