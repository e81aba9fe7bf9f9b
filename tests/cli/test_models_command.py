"""`spiritlevel models` as a user runs it."""

from __future__ import annotations

import json
import re

import pytest

from spiritlevel.cli import main


def test_a_row_tells_all(capsys):
    assert main(["models", "ghostnet_050"]) == 0
    told, err = capsys.readouterr()
    assert err == ""
    (row,) = (line for line in told.splitlines() if line.startswith("ghostnet_050"))
    figures = ["2,587,292", "42.33", "44.10", "80", "1.77", "66.2/86.6"]
    assert row.split() == ["ghostnet_050", *figures, "GhostNet,", "table", "7"]
    for word in ("BN", "MACs", "layers", "224", "1911.11907", "not measured here"):
        assert word in told
    assert "\x1b" not in told
    assert not re.search(r"\{\w+\}", told)


def test_variants_have_rows_with_what_makes_them(capsys):
    assert main(["models", "ghost_*56"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line[:24].rstrip() for line in lines if line.startswith("ghost_")] == [
        "ghost_resnet56 s=2 d=3",
        "ghost_resnet56 s=2 d=1",
    ]


def test_as_json_it_is_whole(capsys):
    assert main(["models", "ghostnet_050", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["code"] == "create_model('ghostnet_050', num_classes=1000)"
    assert (row["image_size"], row["num_classes"], row["norm"]) == (224, 1000, "batch")
    assert (row["parameters"], row["norm_layers"]) == (2_587_292, 80)
    assert row["multiply_adds_with_norms"] - row["multiply_adds"] == row["norm_elements"]
    assert row["norm_elements"] == 1_769_096
    (paper,) = row["published"]["accuracies"]
    assert paper == {"source": "GhostNet, table 7", "top1": 66.2, "top5": 86.6}
    assert row["published"]["multiply_adds_millions"] == 42


def counted(capsys, *arguments):
    assert main(["models", "small_*", "--json", *arguments]) == 0
    return {row["name"]: row for row in json.loads(capsys.readouterr().out)}


def test_size_classes_and_norm_change_what_they_should(capsys):
    plain = counted(capsys)
    larger = counted(capsys, "--image-size", "64")
    classes = counted(capsys, "--num-classes", "11")
    without = counted(capsys, "--norm", "none")
    for name, row in plain.items():
        assert (row["image_size"], row["num_classes"]) == (32, 10)
        assert larger[name]["norm_elements"] == 4 * row["norm_elements"]
        assert larger[name]["parameters"] == row["parameters"]
        assert classes[name]["parameters"] - row["parameters"] == 65
        assert row["parameters"] - without[name]["parameters"] >= row["norm_parameters"] > 0
        assert without[name]["multiply_adds_with_norms"] == row["multiply_adds"]


def test_with_another_norm_no_column_says_bn(capsys):
    assert main(["models", "small_vgg", "--norm", "group:7"]) == 0
    told, err = capsys.readouterr()
    assert err == "", "that 7 groups do not divide some channels is no news here"
    head = told[: told.index("small_vgg")]
    assert "BN" not in head
    assert head.count("norm") == 3


def test_a_model_that_cannot_is_left_out_and_says_so(capsys):
    assert main(["models", "*mlp*", "--norm", "frozen"]) == 0
    assert capsys.readouterr().err == ""
    assert main(["models", "[mr]*5[06]", "--image-size", "40"]) == 0
    assert capsys.readouterr().err == ""
    assert main(["models", "[sm]*l[lp]*", "--norm", "instance"]) == 0
    told, err = capsys.readouterr()
    assert "small_vgg" in told
    assert (
        "not counted: create_model('mlp', num_classes=10, norm='instance', image_size=32): got norm"
        in err
    )
    assert not re.search("^mlp", told, re.M)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["ghostnet"], "got pattern 'ghostnet', which matches no model; wanted one such as"),
        (["small_vg"], "Did you mean small_vgg"),
        (["small_*", "--image-size", "0"], "got image_size=0"),
        (["small_vgg", "--image-size", "4"], "got images of 3 x 4 x 4 for SmallVGG"),
        (["--image-size", "big"], "a valid integer"),
        (["small_*", "--num-classes", "0"], "num_classes=0"),
        (["--norm", "bach"], "got norm 'bach'"),
    ],
)
def test_a_mistake_gets_one_message_and_exit_2(arguments, told, capsys):
    assert main(["models", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert " ".join(told.split()) in " ".join(err.split())
    assert "Traceback" not in err


@pytest.mark.parametrize("width", [80, 140])
def test_in_a_terminal_no_number_is_cut(width, capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", str(width))
    assert main(["models", "*resnet50"]) == 0
    lines = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out).splitlines()
    assert max(map(len, lines)) <= width
    assert not any("…" in line for line in lines)
    (row,) = (line for line in lines if line.startswith("resnet50"))
    for figure in ("25,557,032", "4,089.18", "4,100.30", "53", "11.11", "75.3/92.2", "GhostNet,"):
        assert figure in row.split()
    after = lines[lines.index(row) + 1]
    assert (after.split() == ["table", "6"]) is (width == 80)
