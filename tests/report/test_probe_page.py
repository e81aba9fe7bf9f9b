import base64
import html
import json
import random
import re
import sys
import zlib
from itertools import pairwise

import pytest
from doctor_records import NORMS, STEPS, example_record, tags_of
from story import HOSTILE

from spiritlevel.catalogue import keys, sentence
from spiritlevel.errors import MissingExtra, UsageError
from spiritlevel.report import probe_page
from spiritlevel.report.metrics import METRICS, groups
from spiritlevel.report.numbers import number, percent, seconds, told
from spiritlevel.report.page import LIMIT
from spiritlevel.report.probe_maps import maps
from spiritlevel.report.readings import COUNTERS, readings


@pytest.fixture(scope="module")
def page():
    return probe_page.render(example_record())


@pytest.fixture(scope="module")
def tags(page):
    return tags_of(page)


def packed(page):
    """The data of each map, by the figure's id."""
    found = re.findall(r'class="packed">([^<]*)<', page)
    every = [json.loads(zlib.decompress(base64.b64decode(one))) for one in found]
    return {one["id"]: one for one in every}


def drawn(record, metric):
    return next(one for one in maps(readings(record)) if one.metric == metric)


def alone(values, metric="z_max"):
    """A record of one layer with these values."""
    return {
        "steps": list(range(len(values))),
        "layers": [{"path": "norm", "kind": "norm", "type": "BatchNorm2d"}],
        "metrics": {metric: [values]},
    }


# ---- the page ------------------------------------------------------------------------------------


def test_only_our_script_runs_and_nothing_is_fetched(page, tags):
    types = [attrs.get("type") for tag, attrs in tags if tag == "script"]
    assert types.count(None) == 1
    assert set(types) == {None, "text/plain", "application/json"}
    (policy,) = [attrs["content"] for _, attrs in tags if "http-equiv" in attrs]
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    for tag, attrs in tags:
        assert not [name for name in attrs if name.startswith("on")], (tag, attrs)
        for name in ("src", "href"):
            assert attrs.get(name, "#").startswith(("#", "data:,")), (tag, attrs)


@pytest.mark.parametrize(
    "where",
    [
        '<th scope="row"><code>{}</code>',
        "<li>{}: its input is a dict</li>",
        "<li>{}</li>",
        "Highest in <code>{}</code>",
        '<p class="figure-title" id="figure-other-4-title">{}</p>',
        '<option value="other-4">{}</option>',
    ],
)
def test_hostile_text_is_text_wherever_it_stands(page, where):
    assert HOSTILE not in page
    assert where.format(html.escape(HOSTILE)) in page


def test_hostile_names_are_data(page):
    found = packed(page)
    assert HOSTILE in json.dumps(found["grad_norm"])
    assert [name for name in found if not re.fullmatch(r"[\w-]+", name)] == []


def test_headings_and_labels(tags):
    levels = [int(tag[1]) for tag, _ in tags if re.fullmatch(r"h[1-6]", tag)]
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    ids = [attrs["id"] for _, attrs in tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    for _, attrs in tags:
        assert attrs.get("aria-labelledby", ids[0]) in ids
        assert attrs.get("for", ids[0]) in ids


def test_maps_are_offered_in_their_groups_and_those_unread_are_not(page):
    assert re.findall(r'<option value="([\w-]+)"', page) == [
        "z_max",
        "log_var_ratio_worst",
        "grad_norm",
        "other-4",
    ]
    labels = [sentence(f"probe_page.groups.{group}") for group in ("statistics", "learning")]
    assert re.findall('<optgroup label="([^"]*)"', page) == [*labels, "Other"]


def test_counts_counters_cost_and_the_unseen_are_told(page):
    assert "<dt>optimizer steps</dt><dd>200</dd>" in page
    assert "<dt>of our own</dt><dd>1</dd>" in page
    assert f'<th scope="row"><code>{NORMS[0]}</code></th><td>2 (200 times)</td>' in page
    assert "<td>17</td>" in page
    assert "<b>1.2 %</b> of what training would have taken without it: 310 ms in all." in page
    assert "A sampled step cost 12 ms, any other, in which it only counts, 0.13 ms." in page
    assert "each 100th step is kept" in page
    assert f"<li>{html.escape(HOSTILE)}: its input is a dict</li>" in page


def test_the_head_says_how_many_layers_at_which_steps(page):
    assert "Layers: 8. Sampled steps: 4, one in 50, from 0 to 150." in page
    one = probe_page.render(alone([1.0]))
    assert "Layers: 1. One sampled step: 0." in one
    assert "Sampled steps: 2, from 0 to 1." in probe_page.render(alone([1.0, 2.0]))


def test_the_title_is_the_records_or_made_of_the_models_name():
    assert f"<h1>{html.escape(HOSTILE)}</h1>" in probe_page.render({"title": HOSTILE})
    assert "What the layers of this model saw" in probe_page.render({})


@pytest.mark.parametrize(
    "record",
    [
        {},
        {"metrics": {}, "layers": [], "steps": []},
        alone([]),
        alone([None, float("nan")]),
        {**alone([1.0]), "metrics": {}},
    ],
)
def test_without_a_reading_the_page_says_so(record):
    page = probe_page.render(record)
    assert page.count("There is no reading on this page") == 1
    assert '<select id="metric"' not in page
    assert "The cost was not measured." in page


def test_write_replaces_the_whole_page_or_leaves_the_old_one(tmp_path, page):
    path = tmp_path / "probe.html"
    path.write_text("old")
    with pytest.raises(UsageError):
        probe_page.write({**example_record(), "steps": [0]}, path)
    assert path.read_text() == "old"
    assert probe_page.write(example_record(), path) == path
    assert path.read_text(encoding="utf-8") == page
    assert [one.name for one in tmp_path.iterdir()] == ["probe.html"]


def test_without_the_extra_the_error_names_the_line_that_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(MissingExtra, match=r"pip install 'spiritlevel\[study\]'"):
        probe_page.render({})


# ---- the record ----------------------------------------------------------------------------------


def test_values_survive_the_way_into_the_page(page):
    data = packed(page)["log_var_ratio_worst"]
    pool, value = data["frames"]["pool"], data["frames"]["value"]
    frame = value[0][0]
    z = [pool[row["$"]] if isinstance(row, dict) else row for row in frame["z"]]
    assert z == [[float((depth - 3) * step / 50) for step in STEPS] for depth in range(7)]
    assert frame["rows"] == NORMS
    assert frame["columns"] == STEPS


def test_what_is_not_finite_is_not_read():
    assert readings(alone([1.0, float("inf"), None])).metrics == {"z_max": [[1.0, None, None]]}


def test_layers_of_which_a_metric_was_not_read_are_left_out():
    (panel,) = drawn(example_record(), "log_var_ratio_worst").figure["panels"]
    assert panel["rows"] == NORMS
    (panel,) = drawn(example_record(), "grad_norm").figure["panels"]
    assert panel["rows"] == ["stem", *NORMS]


def test_the_model_itself_has_a_name():
    record = alone([1.0])
    record["layers"][0]["path"] = ""
    assert drawn(record, "z_max").panel["rows"] == ["(the model itself)"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"metrics": {"z_max": [[1.0]]}}, "1 rows of [1] values for the metric 'z_max'"),
        ({"metrics": {"z_max": [[1.0]] * 8}}, "8 rows of [1] values for the metric 'z_max'"),
        ({"steps": [0, 50, 50, 150]}, "steps of a probe's record out of order"),
    ],
)
def test_a_record_whose_pieces_do_not_fit_is_refused(change, message):
    with pytest.raises(UsageError, match=re.escape(message)):
        readings({**example_record(), **change})


# ---- colours -------------------------------------------------------------------------------------


def ends(values, metric):
    one = drawn(alone(values, metric), metric)
    return one.panel["colour"]["range"], one.clipped


def test_colours_reach_from_the_least_to_the_greatest_value():
    assert ends([0.1, 5.0, None], "z_max") == ([0.1, 5.0], (False, False))


def test_a_scale_with_two_ends_is_even_around_its_middle():
    assert ends([-1.0, 3.0], "beta_mean") == ([-3.0, 3.0], (False, False))
    assert ends([0.0, 1.5], "gamma_min") == ([0.0, 2.0], (False, False))
    assert ends([1.0, 1.0], "gamma_min") == ([0.0, 2.0], (False, False))


def test_a_single_value_has_colours_around_it():
    assert ends([4.0], "z_max") == ([2.0, 8.0], (False, False))
    assert ends([4.0], "batches_tracked") == ([3.0, 5.0], (False, False))
    assert ends([0.0], "grad_norm") == ([0.5, 2.0], (False, False))


def test_one_value_far_out_does_not_take_the_others_colours():
    many = [i / 100 for i in range(-100, 100)]
    (low, high), clipped = ends([*many, 1e6], "input_mean")
    assert -1.01 < low < -0.98
    assert 0.98 < high < 1.01
    assert clipped[1]
    many = [10 ** (i / 100) for i in range(100)]
    (low, high), clipped = ends([*many, 1e30], "z_max")
    assert (low, clipped) == (1.0, (False, True))
    assert 9 < high < 10
    page = probe_page.render(alone([*many, 1e30]))
    assert re.search(r"<span>≥ 9\.\d</span>", page)
    assert "The colours end before the rarest values" in page


def test_shares_and_counts_begin_at_0_and_show_the_rarest_value():
    """A channel that is not finite at one step of a thousand has the brightest colour."""
    assert ends([0.0] * 999 + [3.0], "non_finite") == ([0.0, 3.0], (False, False))
    assert ends([0.0] * 10, "dead_share") == ([0.0, 0.01], (False, False))


def test_zeros_on_a_logarithmic_scale_are_counted():
    page = probe_page.render(alone([0.0, 0.0, 2.0], "grad_norm"))
    assert "which a logarithmic scale cannot show: 2." in page
    assert "cannot show" not in probe_page.render(alone([0.0, 2.0], "dead_share"))


def test_the_summary_names_the_most_telling_cell(page):
    assert re.search(r"Farthest from 0 in <code>[^<]*</code> at step 150: −?9\.", page)
    assert f"Highest in <code>{html.escape(HOSTILE)}</code> at step 150." in page
    assert "2 everywhere, layers read: 1." in probe_page.render(alone([2.0, 2.0]))


def test_every_metric_has_its_words_and_its_group():
    wanted = {f"probe_page.metrics.{m}.{w}" for m in METRICS for w in ("title", "colour", "read")}
    assert wanted == {key for key in keys() if key.startswith("probe_page.metrics.")}
    assert {f"probe_page.groups.{one}" for one in groups()} == {
        key for key in keys() if key.startswith("probe_page.groups.")
    }
    assert {f"probe_page.{name}" for name in COUNTERS} <= set(keys())


def test_the_page_knows_every_number_that_a_probe_reads():
    """A deviation is drawn where a variance is read."""
    from spiritlevel.probe.watch import METRICS as READ

    assert {name.replace("_var", "_std") if name.endswith("_var") else name for name in READ} == {
        *METRICS
    }


# ---- size ----------------------------------------------------------------------------------------


def large(layers, steps, metrics):
    """Values of no pattern, which deflate as little as numbers can."""
    rng = random.Random(0)
    names = [f"stages.{i // 4}.blocks.{i}.norm" for i in range(layers)]
    return {
        "steps": list(range(0, 50 * steps, 50)),
        "layers": [{"path": name, "kind": "norm", "type": "BatchNorm2d"} for name in names],
        "metrics": {
            metric: [[rng.random() for _ in range(steps)] for _ in names] for metric in metrics
        },
    }


@pytest.mark.parametrize(
    "metrics", [["z_max"], pytest.param([*METRICS], marks=pytest.mark.slow)], ids=["one", "all"]
)
def test_200_layers_at_512_steps_stay_within_the_bound(metrics):
    page = probe_page.render(large(200, 512, metrics))
    assert 2_200_000 < len(page.encode()) <= LIMIT == 6_000_000
    assert ("sampled steps is drawn" in page) == (len(metrics) > 1)


def test_what_is_larger_loses_steps_and_says_so(monkeypatch):
    monkeypatch.setattr("spiritlevel.report.probe_page.LIMIT", 2_100_000)
    page = probe_page.render(large(40, 512, ["z_max", "input_mean"]))
    assert len(page.encode()) <= 2_100_000
    assert re.findall(r"one of (\d+) sampled steps is drawn", page)
    columns = {len(one["frames"]["value"][0][0]["columns"]) for one in packed(page).values()}
    assert min(columns) < 512


# ---- numbers -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (number(0.000123456), "0.0001235"),
        (number(-3.0), "−3"),
        (number(1.5e-9), "1.5e−9"),
        (number(2.5e20), "2.5e20"),
        (number(float("inf")), "inf"),
        (percent(0.0123), "1.2 %"),
        (percent(0.82), "82 %"),
        (percent(-0.15), "−15 %"),
        (seconds(0.0123), "12.3 ms"),
        (seconds(75.0), "75 s"),
        (told(None), "–"),
        (told(True), "yes"),
        (told([8, 10]), "8, 10"),
        (told([]), "–"),
        (told({"a": 0.5, "b": "c"}), "a: 0.5, b: c"),
        (told("<b>"), "<b>"),
    ],
)
def test_numbers_are_written_as_people_write_them(given, said):
    assert given == said
