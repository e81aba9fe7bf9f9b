"""`spiritlevel check` and `spiritlevel rule`: a model of the user's, from a folder of theirs."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import pytest
import torch
from torch import nn

from spiritlevel.cli import main
from spiritlevel.doctor.check import RULES
from spiritlevel.errors import UsageError
from spiritlevel.models.weights import load_weights, save_weights

MODELS = """
import torch
from torch import nn

print("imported", flush=True)

def net(num_classes=10, in_chans=1, momentum=0.1):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(in_chans, 4, 3, stride=4, bias=False), nn.BatchNorm2d(4, momentum=momentum),
        nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, num_classes),
    )

def good():
    return net()

def swapped():
    print("being built", flush=True)
    return net(momentum=0.9)

def negative(num_classes, in_chans):
    model = net(num_classes, in_chans)
    model[1].running_var[0] = -1.0
    return model

def with_norm(norm):
    from spiritlevel.nn import norm_layer
    return nn.Sequential(nn.Conv2d(1, 4, 3), norm_layer(norm)(4))

def needs(depth):
    return net()

def fails():
    raise RuntimeError("no such layer")

def no_model():
    return 3

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(3)

def loader():
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(64, 1, 8, 8, generator=generator), torch.arange(64) % 10
    return list(zip(x.split(16), y.split(16)))

LIST = loader()
THREE = 3

def no_loader():
    raise ValueError("no such file")
"""


SWAPPED = MODELS.splitlines().index("def swapped():") + 1


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    (tmp_path / "nets.py").write_text(MODELS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    sys.modules.pop("nets", None)


def run(capfd, *arguments: str) -> tuple[int, str, str]:
    code = main(["check", *arguments])
    told = capfd.readouterr()
    return code, told.out, told.err


# ---- exit codes and output -----------------------------------------------------------------------


def test_nothing_found(capfd):
    code, out, _ = run(capfd, "nets:good")
    assert code == 0
    assert re.fullmatch(r"nets:good: nothing found; \d+ rules asked, \d+ not: .*\n", out)


def test_a_finding_is_shown_and_exits_1(capfd):
    code, out, err = run(capfd, "nets:swapped")
    assert code == 1
    assert "SL101" in out
    assert "momentum-swapped" in out
    assert "0.9" in out
    assert f"runs your code: swapped in ./nets.py, line {SWAPPED} (nets:swapped)" in err


def test_in_chinese_a_place_a_severity_and_a_need_are_said_in_chinese(capfd):
    _, out, err = run(capfd, "nets:swapped", "--lang", "zh")
    assert out.startswith("警告 ")
    assert "另有" in out
    assert f"位于 ./nets.py 第 {SWAPPED} 行（nets:swapped）" in err
    _, _, err = run(capfd, "nets:fails", "--lang", "zh")
    assert re.search(
        r"got RuntimeError: no such layer from nets:fails \(./nets.py, line \d+\)", err
    )
    assert main(["rule", "SL316", "--lang", "zh"]) == 0
    out = capfd.readouterr().out.splitlines()
    assert out[1] == "错误"
    assert "需要：目标值。" in out


def test_lines_in_a_pipe_are_neither_broken_nor_padded(capfd):
    _, out, _ = run(capfd, "nets:swapped")
    assert [line for line in out.splitlines() if line != line.rstrip()] == []
    assert "\x1b" not in out


@pytest.mark.parametrize(
    ("options", "code"),
    [
        (["--fail-on", "error"], 0),
        (["--fail-on", "warning"], 1),
        (["--fail-on", "info"], 1),
        (["--ignore", "SL101"], 0),
        (["--select", "SL2"], 0),
        (["--select", "SL101"], 1),
    ],
)
def test_what_fails_is_chosen(capfd, options, code):
    assert run(capfd, "nets:swapped", *options)[0] == code


def test_what_the_users_code_prints_is_not_in_the_json(capfd):
    code, out, err = run(capfd, "nets:swapped", "--format", "json")
    assert code == 1
    told = json.loads(out)
    assert told["model"] == "nets:swapped"
    assert [finding["rule"] for finding in told["findings"]] == ["SL101"]
    assert "being built" in err
    assert "imported" in err


def test_sarif_names_the_line_of_the_function(capfd):
    _, out, _ = run(capfd, "nets:swapped", "--format", "sarif")
    (result,) = json.loads(out)["runs"][0]["results"]
    place = result["locations"][0]["physicalLocation"]
    assert place["artifactLocation"]["uri"] == "nets.py"
    assert place["region"]["startLine"] == SWAPPED


@pytest.mark.parametrize("form", ["table", "json", "sarif", "html"])
def test_each_form_goes_into_a_file(capfd, here, form):
    code, out, err = run(capfd, "nets:swapped", "--format", form, "--out", "found.txt")
    assert (code, out) == (1, "")
    assert "found.txt: 1 warning" in err
    text = (here / "found.txt").read_text()
    assert "SL101" in text
    assert text.endswith("\n")


def test_a_page_on_stdout_is_utf_8_whatever_the_terminal_is(here):
    done = subprocess.run(
        [
            *(sys.executable, "-m", "spiritlevel", "check", "nets:swapped"),
            "--format",
            "html",
            "--lang",
            "zh",
        ],
        capture_output=True,
        cwd=here,
        env=os.environ | {"PYTHONIOENCODING": "gbk"},
    )
    page = done.stdout.decode("utf-8")
    assert '<html lang="zh-CN">' in page
    assert "SL101" in page


def test_a_rule_needs_all_that_it_names(capfd):
    assert main(["rule", "SL502"]) == 0
    assert "Needs: a reference and an example or data." in capfd.readouterr().out
    assert main(["rule", "SL502", "--lang", "zh"]) == 0
    assert "需要：参照模型、示例输入或数据。" in capfd.readouterr().out


def test_a_file_that_cannot_be_written_is_told_before_the_work(capfd):
    code, _, err = run(capfd, "nets:swapped", "--out", "no/such/folder/found.txt")
    assert code == 2
    assert "wanted a folder that is there" in err
    assert "being built" not in err


# ---- the model -----------------------------------------------------------------------------------


def test_names_of_our_own_models(capfd):
    assert run(capfd, "mlp")[0] == 0
    code, _, err = run(capfd, "mlpp")
    assert code == 2
    assert "Did you mean mlp?" in err


def test_a_norm_that_must_be_given_is_batch(capfd):
    assert run(capfd, "nets:with_norm")[0] == 0


def test_a_class_is_a_factory(capfd):
    assert run(capfd, "nets:Net")[0] == 0


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "got no model to check; wanted pkg.module:factory"),
        (["nets:gone"], "./nets.py has no gone"),
        (["nets:goood"], ". Did you mean good?"),
        (["no.such:net"], "there is no module no"),
        (["nets:fails"], "got RuntimeError: no such layer from nets:fails"),
        (["nets:no_model"], "got an int from nets:no_model"),
        (["nets:needs"], "needs(depth) wants depth; a check gives norm"),
        (["nets:THREE"], "which is an int; wanted a function"),
        (["nets:good", "--loader", "nets:gone"], "got loader nets:gone, but ./nets.py has no gone"),
        (["nets:good", "--loader", "nets:THREE"], "got loader nets:THREE, which is an int"),
        (["nets:good", "--loader", "nets:no_loader"], "got ValueError: no such file from loader"),
        (["nets:good", "--loader", "nets"], "got loader 'nets'; wanted pkg.module:loader"),
        (["nets:good", "--loader", "nets:LIST", "--data", "digits"], "got --data and --loader"),
        (["nets:good", "--data", "nothing"], "got data 'nothing'"),
        (["nets:good", "--mean", "0.5"], "got --mean without --data"),
        (["nets:good", "--batch-size", "8"], "got --batch-size without --data"),
        (["nets:good", "--batches", "0"], "got --batches 0; wanted 1 or more"),
        (["nets:good", "--data", "digits", "--batch-size", "0"], "got --batch-size 0"),
        (["nets:good", "--data", "digits", "--mean", "a"], "got --mean a; wanted numbers"),
        (["nets:good", "--select", "SL999"], "got 'SL999' in select"),
        (["nets:good", "--ignore", "X"], "got 'X' in ignore"),
        (["nets:good", "--fail-on", "never"], "never"),
        (["nets:good", "--format", "xml"], "xml"),
        (["nets:good", "--baseline", "gone.json"], "while reading baseline gone.json"),
        (["nets:good", "--fix-out", "a.pth"], "got --fix-out without --fix"),
        (["nets:good", "--fix", "--fix-out", "a.txt"], "wanted a name that ends in one of"),
        (["nets:good", "--weights", "gone.pth"], "while reading weights gone.pth"),
        (["nets:good", "--map-location", "nowhere"], "got --map-location nowhere"),
    ],
)
def test_a_mistake_gets_one_message_and_exit_2(arguments, told, capfd):
    code, _, err = run(capfd, *arguments)
    assert code == 2
    assert told in " ".join(err.replace("│", " ").split())
    assert "Traceback" not in err


# ---- data ----------------------------------------------------------------------------------------


def test_images_by_name(capfd):
    code, out, err = run(
        capfd,
        "nets:negative",
        "--data",
        "digits",
        "--batches",
        "2",
        "--batch-size",
        "16",
        "--format",
        "json",
    )
    assert code == 1
    told = json.loads(out)
    assert told["gap"]["samples"] == 32
    assert "SL205" in [finding["rule"] for finding in told["findings"]]
    assert "digits: 32 training images in batches of 16, in random order" in err


@pytest.mark.parametrize("name", ["loader", "LIST"])
def test_batches_of_the_users_own(capfd, name):
    _, out, err = run(capfd, "nets:good", "--loader", f"nets:{name}", "--format", "json")
    assert json.loads(out)["gap"]["samples"] == 64
    assert f"reads your batches: nets:{name}" in err


def test_a_model_that_cannot_take_the_batches_is_told(capfd):
    code, _, err = run(capfd, "nets:Net", "--loader", "nets:LIST")
    assert code == 2
    assert "raised" in err


# ---- weights -------------------------------------------------------------------------------------


def network(**given) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4, **given))
    nn.init.normal_(model[1].running_mean)
    return model


@pytest.mark.parametrize("name", ["w.pth", "w.pt", "w.safetensors"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_go_out_and_in(here, name, dtype):
    model, other = network().to(dtype), network().to(dtype)
    other[1].reset_running_stats()
    save_weights(model, here / name)
    load_weights(other, here / name)
    for key, value in model.state_dict().items():
        assert torch.equal(other.state_dict()[key], value), key
    assert [path.name for path in here.iterdir() if path.name != "nets.py"] == [name]


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: {"model": state, "optimizer": {}},
        lambda state: {f"module.{key}": value for key, value in state.items()},
        lambda state: {"model": {f"module._orig_mod.{k}": v for k, v in state.items()}},
        lambda state: {k: v for k, v in state.items() if not k.endswith("tracked")},
    ],
)
def test_wrappers_and_prefixes_are_taken_off(here, wrap):
    model, other = network(), network()
    other[1].reset_running_stats()
    torch.save(wrap(model.state_dict()), here / "w.pth")
    load_weights(other, here / "w.pth")
    assert torch.equal(other[1].running_mean, model[1].running_mean)


def test_what_does_not_fit_is_named(here):
    state = network().state_dict()
    del state["1.weight"]
    state["2.weight"] = torch.zeros(3)
    state["0.weight"] = torch.zeros(4, 2, 3, 3)
    torch.save(state, here / "w.pth")
    with pytest.raises(UsageError) as caught:
        load_weights(network(), here / "w.pth")
    for part in ("it lacks 1.weight", "has beside 2.weight", "0.weight (4, 2, 3, 3) for (4, 1, 3"):
        assert part in str(caught.value)


class Evil:
    def __reduce__(self):
        return print, ("owned",)


def test_no_code_of_a_file_runs(here, capfd):
    torch.save({"state_dict": Evil()}, here / "w.pth")
    with pytest.raises(UsageError, match=r"which cannot be read .* may run code"):
        load_weights(network(), here / "w.pth")
    torch.save(network(), here / "w.pth")
    with pytest.raises(UsageError, match="wanted the state_dict"):
        load_weights(network(), here / "w.pth")
    assert "owned" not in capfd.readouterr().out


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("w.safetensors", b"", "which are no safetensors"),
        ("w.safetensors", b"\xff" * 64, "which are no safetensors"),
        ("w.safetensors", b"\x02\0\0\0\0\0\0\0[]", "which are no safetensors"),
        ("w.pth", b"", "which cannot be read"),
        ("w.pth", b"hello", "which cannot be read"),
        ("w.h5", b"", "wanted a name that ends in one of: .safetensors"),
    ],
)
def test_what_is_no_weights_is_refused(here, name, content, told):
    (here / name).write_bytes(content)
    with pytest.raises(UsageError, match=re.escape(told)):
        load_weights(network(), here / name)


def test_a_file_of_something_else(here):
    torch.save({"epoch": 3}, here / "w.pth")
    with pytest.raises(UsageError, match="hold a dict of epoch; wanted a state_dict"):
        load_weights(network(), here / "w.pth")


# ---- fixes, baselines, settings ------------------------------------------------------------------


def test_a_fix_is_made_told_and_kept(capfd, here):
    arguments = ["nets:negative", "--loader", "nets:LIST"]
    (here / "nets.py").write_text(
        MODELS.replace("negative(num_classes, in_chans)", "negative()").replace(
            "net(num_classes, in_chans)\n    model[1]", "net()\n    model[1]"
        )
    )
    code, out, err = run(
        capfd, *arguments, "--select", "SL205", "--fix", "--fix-out", "fixed.safetensors"
    )
    assert code == 0
    assert "fixed 1: SL205: running statistics taken anew from 4 batches" in out
    assert "the weights as they are now: fixed.safetensors" in err
    code, _, _ = run(capfd, *arguments, "--select", "SL205", "--weights", "fixed.safetensors")
    assert code == 0


def test_a_fix_that_is_not_kept_says_so(capfd):
    code, out, err = run(capfd, "nets:swapped", "--fix")
    assert code == 0
    assert "momentum 0.9 -> 0.1" in out
    assert "--fix-out FILE keeps its weights" in err


def test_a_baseline_accepts_todays_findings(capfd, here):
    code, out, _ = run(capfd, "nets:swapped", "--write-baseline", "accepted.json")
    assert code == 0
    assert "accepted: 1 findings of nets:swapped are in accepted.json" in out
    code, out, _ = run(capfd, "nets:swapped", "--baseline", "accepted.json")
    assert code == 0
    assert "nothing found (1 accepted by the baseline)" in out
    code, out, _ = run(capfd, "nets:good", "--baseline", "accepted.json")
    assert "accepted" not in out


def test_settings_stand_in_the_pyproject(capfd, here):
    (here / "pyproject.toml").write_text('[tool.spiritlevel]\nignore = ["SL101"]\n')
    assert run(capfd, "nets:swapped")[0] == 0
    (here / "pyproject.toml").write_text('[tool.spiritlevel]\nfail-on = "error"\n')
    assert run(capfd, "nets:swapped")[0] == 0
    assert run(capfd, "nets:swapped", "--fail-on", "warning")[0] == 1
    (here / "pyproject.toml").write_text('[tool.spiritlevel]\nbaseline = "accepted.json"\n')
    run(capfd, "nets:swapped", "--write-baseline", "accepted.json")
    assert run(capfd, "nets:swapped")[0] == 0
    (here / "pyproject.toml").write_text("[tool.spiritlevel]\nselct = []\n")
    code, _, err = run(capfd, "nets:swapped")
    assert code == 2
    assert "Did you mean select?" in err


# ---- rules ---------------------------------------------------------------------------------------


def test_all_rules_are_listed(capfd):
    code, out, _ = run(capfd, "--list-rules")
    assert code == 0
    for id, rule in RULES.items():
        assert id in out
        assert rule.name in out


@pytest.mark.parametrize("id", sorted(RULES))
def test_a_rule_tells_of_itself(id, capfd):
    assert main(["rule", id]) == 0
    out = capfd.readouterr().out
    rule = RULES[id]
    for part in (id, rule.name, rule.severity, rule.summary, *rule.threads, f"docs/rules/{id}.md"):
        assert part in out


@pytest.mark.parametrize(
    ("id", "told"),
    [("SL999", "got 'SL999' in the command"), ("SL2", "got rule 'SL2', which begins several")],
)
def test_a_rule_that_is_none(id, told, capfd):
    assert main(["rule", id]) == 2
    assert told in capfd.readouterr().err


@pytest.mark.parametrize(
    "change",
    [
        {"data_offsets": [-4, 12]},
        {"data_offsets": [0, 4000]},
        {"shape": [-1]},
        {"dtype": "F64"},
    ],
)
def test_safetensors_whose_header_lies_are_refused(tmp_path, change):
    from spiritlevel.errors import UsageError
    from spiritlevel.models.weights import load_weights, save_weights

    model = nn.Linear(2, 2, bias=False)
    path = tmp_path / "w.safetensors"
    save_weights(model, path)
    load_weights(model, path)
    content = path.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    header["weight"] |= change
    told = json.dumps(header).encode()
    path.write_bytes(len(told).to_bytes(8, "little") + told + content[end:])
    with pytest.raises(UsageError, match="which are no safetensors"):
        load_weights(model, path)


def test_nothing_is_computed_on_the_device_meta(capsys):
    assert main(["check", "ghostnet_050", "--map-location", "meta"]) == 2
    assert "got --map-location meta" in capsys.readouterr().err


def test_a_baseline_is_no_reason_to_keep_no_weights(tmp_path):
    out, known = tmp_path / "w.pth", tmp_path / "known.json"
    arguments = ["check", "ghostnet_050", "--fix", "--fix-out", str(out)]
    assert main([*arguments, "--write-baseline", str(known)]) == 0
    assert out.is_file()
    assert known.is_file()
