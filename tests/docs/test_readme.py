"""What README tells a reader to type works, and the figures it quotes are measured.

README.zh-CN.md shows the same commands and is held to the same figures.
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from statistics import mean

import numpy as np
import pytest
from PIL import Image
from seen import ENGLISH, ILL_SPACED, seen

from spiritlevel.catalogue import say, speaking
from spiritlevel.study import Study
from spiritlevel.study.claims import CLAIMS
from spiritlevel.study.config import PRESETS
from spiritlevel.study.networks import title

ROOT = Path(__file__).parents[2]
READMES = {
    "en": (ROOT / "README.md").read_text(),
    "zh": (ROOT / "README.zh-CN.md").read_text(),
}
README = READMES["en"]
EXAMPLE = ROOT / "docs/standard"


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.M | re.S)


def commands() -> list[str]:
    lines = [line for block in blocks("console") for line in block.splitlines()]
    return [line[2:].partition("  #")[0].strip() for line in lines if line.startswith("$ ")]


def environment() -> dict[str, str]:
    """So that `spiritlevel` and `python` are the ones under test."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": path}


@pytest.fixture(params=READMES)
def language(request) -> str:
    return request.param


def code(readme: str) -> list[str]:
    return re.findall(r"^```.*?^```$", readme, re.M | re.S)


def numerals(readme: str) -> Counter[str]:
    """All that are not code and not in a link."""
    prose = re.sub(r"^```.*?^```$|`.*?`|\]\(.*?\)", "", readme, flags=re.M | re.S)
    return Counter(re.findall(r"−?\d(?:[\d,.]*\d)?", prose))


def test_both_show_the_same_code_and_quote_the_same_numbers():
    """python tools/readme.py takes the code over."""
    assert code(READMES["zh"]) == code(README)
    assert numerals(READMES["zh"]) == numerals(README)


def test_both_lead_to_the_same_places():
    links = {name: set(re.findall(r"\]\((.*?)\)", text)) for name, text in READMES.items()}
    apart = {"README.md", "README.zh-CN.md"}
    assert links["zh"] - apart == links["en"] - apart
    assert "README.md" in links["zh"]


def test_it_is_short_and_has_its_picture(language):
    assert len(READMES[language].splitlines()) <= 100
    pictures = re.findall(r"!\[.*?\]\((.*?)\)", READMES[language])
    assert pictures
    assert all((ROOT / picture).is_file() for picture in pictures)


RULES = {
    "en": "[{rules} rules](docs/rules/README.md), each with a bug that fires it and a clean twin "
    "that does not: {hits} of {cases} bugs found, no false alarm; a general linter tells {audited} "
    "of {audits} apart",
    "zh": "[{rules} 条规则](docs/rules/README.md)，每条都有一个触发它的错误，"
    "和一个不触发它的无错孪生：{cases} 个错误找到 {hits} 个，没有误报； "
    "一个通用的检查工具能分辨出 {audits} 个中的 {audited} 个",
}


def test_what_it_says_of_the_rules_is_what_was_run(language):
    cases = json.loads((ROOT / "docs/rules/cases.json").read_text())
    rules = {each["rule"] for each in cases}
    hits, alarms = sum(each["hit"] for each in cases), sum(bool(each["alarms"]) for each in cases)
    audited = [each["torch_audit"]["apart"] for each in cases if each["torch_audit"]]
    told = " ".join(READMES[language].split())
    assert alarms == 0
    wanted = RULES[language].format(
        rules=len(rules),
        hits=hits,
        cases=len(cases),
        audited=sum(audited),
        audits=len(audited),
    )
    assert wanted in told
    (finding,) = blocks("text")
    assert finding in (ROOT / "docs/rules/SL316.md").read_text()


def test_its_links_lead_somewhere():
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", README)
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_its_first_two_commands_are_study_and_test():
    assert [command.split()[:2] for command in commands()[:2]] == [
        ["make", "study"],
        ["make", "test"],
    ]


NETWORK = """
from torch import nn
from spiritlevel.nn import norm_layer

def build(num_classes, in_chans, norm):
    make = norm_layer(norm)
    stages = [nn.Conv2d(in_chans, 8, 3, stride=2), make(8), nn.ReLU()]
    for _ in range(4):
        stages += [nn.Conv2d(8, 8, 3, padding=1), make(8), nn.ReLU()]
    return nn.Sequential(*stages, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, num_classes))
"""


def own_network_and_images(folder: Path) -> None:
    """The reader's: my/models.py, and photos/ of two classes, as many as a study asks for."""
    (folder / "my").mkdir()
    (folder / "my/models.py").write_text(NETWORK)
    draw = np.random.default_rng(0)
    for number, name in enumerate(("bright", "dark")):
        (folder / "photos" / name).mkdir(parents=True)
        for index in range(320):
            pixels = draw.integers(100 * number, 100 * number + 156, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "photos" / name / f"{index}.png")


@pytest.mark.slow
def test_its_commands_run_one_after_the_other(tmp_path):
    """In one folder; make and pip set up an environment of their own: see the test below."""
    own_network_and_images(tmp_path)
    for command in commands():
        if "--model" in command:
            command += " --preset smoke"  # the default takes minutes
        if not command.startswith(("make", "pip")):
            done = subprocess.run(
                command,
                shell=True,
                cwd=tmp_path,
                env=environment(),
                capture_output=True,
                text=True,
                timeout=300,
            )
            assert done.returncode == 0, (command, done.stderr)


def test_what_a_console_block_shows_is_what_is_printed():
    """The lines below a command, each, stand in its output."""
    for block in blocks("console"):
        parts = re.split(r"^\$ ", block, flags=re.M)[1:]
        for part in parts:
            command, *shown = part.rstrip().splitlines()
            if shown and command.startswith("spiritlevel explain"):
                done = subprocess.run(
                    command.partition("  #")[0],
                    shell=True,
                    env=environment(),
                    capture_output=True,
                    text=True,
                    timeout=60,
                )
                told = [line.strip() for line in done.stdout.splitlines()]
                assert [line for line in shown if line.strip() not in (*told, "...")] == []


@pytest.mark.slow
@pytest.mark.parametrize("code", blocks("python"))
def test_the_python_examples_run(tmp_path, code):
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr


def row(readme: str, name: str) -> list[str]:
    """The cells of the table's row for a claim."""
    (line,) = [line for line in readme.splitlines() if line.startswith("| ") and name in line]
    return [cell.strip() for cell in line.strip("| ").split(" | ")]


def test_the_verdicts_it_quotes_are_those_that_a_run_wrote(language):
    measured = json.loads((EXAMPLE / "verdicts.json").read_text())["verdicts"]
    assert [verdict["claim"] for verdict in measured] == list(CLAIMS)
    networks = list(measured[0]["networks"])
    readme = READMES[language]

    def in_words(one: dict) -> str:
        return say(f"terminal.verdicts.{one['verdict'].replace(' ', '_')}")

    with speaking(language):
        assert row(readme, f"| {say('terminal.verdict')} |")[2:] == [title(n) for n in networks]
        for verdict in measured:
            _, told, *cells = row(readme, say(f"terminal.claims.{verdict['claim']}"))
            assert told == in_words(verdict)
            for name, cell in zip(networks, cells, strict=True):
                one = verdict["networks"][name]
                label = say("joints.label", label=in_words(one))
                assert cell.startswith(f"{label}{one['figure']}"), (verdict["claim"], name)


@pytest.fixture(scope="module")
def study() -> Study:
    return Study.load(EXAMPLE)


def test_those_verdicts_are_what_todays_rules_make_of_its_records(study):
    measured = json.loads((EXAMPLE / "verdicts.json").read_text())["verdicts"]
    assert not study.missing
    assert not study.rules_changed
    assert [json.loads(json.dumps(one.to_json())) for one in study.verdicts.values()] == measured


def test_the_preset_is_still_what_was_run():
    plan = json.loads((EXAMPLE / "config.json").read_text())["plan"]
    today = json.loads(json.dumps(asdict(PRESETS["standard"])))
    assert {k: v for k, v in plan.items() if k != "data"} == {
        k: v for k, v in today.items() if k != "data"
    }


def test_the_page_beside_them_is_drawn_from_them(tmp_path, study):
    """Byte for byte, so that no page is kept that today's code and these records do not give."""
    study.report(tmp_path / "again.html")
    assert (tmp_path / "again.html").read_bytes() == (EXAMPLE / "report.html").read_bytes()


def test_the_same_page_in_chinese_has_no_english_left(tmp_path, study):
    page = study.report(tmp_path / "page.html", lang="zh").read_text()
    assert '<html lang="zh-CN">' in page
    texts = seen(page)
    assert len(texts) > 5000
    assert [text for text in texts if ENGLISH.search(text)] == []
    assert [text for text in texts if ILL_SPACED.search(text)] == []
    # Nor does it leave the study in another language than it was asked in.
    assert study.verdicts["converges"].words["larger"].startswith("the largest rate")


def test_the_page_beside_them_is_whole_and_names_no_machine():
    page = (EXAMPLE / "report.html").read_text()
    assert len(page.encode()) < 6e6
    assert page.rstrip().endswith("</html>")
    for path in EXAMPLE.iterdir():
        if path.suffix != ".png":
            assert not re.search(r"(/work|/tmp|/root|/home)/", path.read_text()), path


NAMES = {"resnet18": "ResNet-18", "mobilenet_v2": "MobileNetV2"}


def measured(name: str) -> dict:
    return json.loads((ROOT / "docs/bench" / f"{name}.json").read_text())


SPEEDS = {
    "en": r"takes torch ([\d.]+) times as long on two cores, ([\d.]+) in channels-last; a training "
    r"step of MobileNetV2 ([\d.]+) times, of ResNet-18 ([\d.]+) ",
    "zh": r"torch 的用时是它的 ([\d.]+) 倍，channels-last 下是 ([\d.]+) 倍；一个训练步，"
    r"MobileNetV2 是 ([\d.]+) 倍， ResNet-18 是 ([\d.]+) 倍",
}


def test_the_speeds_it_quotes_are_those_that_a_run_wrote(language):
    (layers,) = (
        group["ratios"]
        for group in measured("norms")["figures"]
        if group["mode"] == "forward+backward" and not group["add"]
    )
    steps = {case["model"]: case["ratios"] for case in measured("fuse")["cases"]}
    quoted = re.search(SPEEDS[language], READMES[language].replace("\n", " "))
    assert quoted is not None
    last = "eager channels-last"
    found = [layers["eager"], layers[last], steps["mobilenet_v2"][last], steps["resnet18"][last]]
    assert list(quoted.groups()) == [f"{ratio['value']:.2f}" for ratio in found]


SHIPPED = {
    "en": r"gets (?P<exact>[\d.]+%) of (?P<data>[^ ]+ \(JPEG\)) right changes none of its "
    r"(?P<images>[\d,]+) predictions as ONNX, `torch.export` or OpenVINO file, and gets "
    r"(?P<int8>[\d.]+%) in int8",
    "zh": r"一个在 (?P<data>[^ ]+ \(JPEG\)) 上正确率为 (?P<exact>[\d.]+%) 的 GhostNet， 存成 ONNX、"
    r"`torch.export` 或 OpenVINO 文件，(?P<images>[\d,]+) 个预测一个也没有变，"
    r"int8 下正确率为 (?P<int8>[\d.]+%)",
}


def test_what_it_says_of_a_shipped_network_is_what_a_run_wrote(language):
    found = json.loads((ROOT / "docs/ship.json").read_text())
    forms = found["forms"]
    quoted = re.search(SHIPPED[language], READMES[language].replace("\n", " "))
    assert quoted is not None
    exact = [forms[name] for name in ("ONNX", "torch.export", "OpenVINO")]
    assert all(form["changed"] == 0 and form["ok"] for form in exact)
    assert quoted.groupdict() == {
        "exact": f"{exact[0]['accuracy']:.2%}",
        "data": found["data"],
        "images": f"{found['counts']['test']:,}",
        "int8": f"{forms['ONNX, int8']['accuracy']:.2%}",
    }


def test_the_speeds_in_docs_are_those_that_a_run_wrote():
    page = (ROOT / "docs/bench.md").read_text()
    for group in measured("norms")["figures"]:
        name = f"BN {'+ add ' * group['add']}+ ReLU, {group['mode'].replace('+', ' + ')} |"
        (line,) = (line for line in page.splitlines() if line.startswith(f"| {name}"))
        for figure in ("eager", "eager channels-last", "compile"):
            ratio = group["ratios"][figure]
            assert f"{ratio['value']:.2f}× ({ratio['low']:.2f} to {ratio['high']:.2f})" in line
        assert line.endswith(f"| {group['ratios']['floor']['value']:.2f} |")
    for layout, seconds in measured("norms")["first_step"]["seconds"].items():
        cells = [f"{seconds[name]['added']:.1f}" for name in ("torch", "cold", "warm")]
        assert f"| {layout} | {' | '.join(cells)} |" in page
    for case in measured("fuse")["cases"]:
        assert f"{case['peak_ratio']:.2f} for {NAMES[case['model']]}" in page
        (line,) = (
            one for one in page.splitlines() if one.startswith(f"| {NAMES[case['model']]}, a")
        )
        for figure in ("eager", "eager channels-last"):
            ratio = case["ratios"][figure]
            assert f"{ratio['value']:.2f}× ({ratio['low']:.2f} to {ratio['high']:.2f})" in line
    for name, told in (("ours", "{} as long"), ("eager", "{} for torch's")):
        ratio = measured("allocator")["ratios"][name]
        words = f"{ratio['value']:.2f}× ({ratio['low']:.2f} to {ratio['high']:.2f})"
        assert told.format(words) in " ".join(page.split())


def test_docs_are_what_the_tool_writes_and_call_missed_what_is_missed():
    spec = importlib.util.spec_from_file_location("measured", ROOT / "tools/measured.py")
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    page = (ROOT / "docs/bench.md").read_text()
    assert tool.page(page) == page
    assert tool.quoted(README) == README
    probe = (ROOT / "docs/probe.md").read_text()
    assert tool.cost(probe) == probe
    exported = (ROOT / "docs/export.md").read_text()
    assert tool.speed(exported) == exported
    for case in measured("deploy")["cases"]:
        ratio = case["ratios"]["float32"]
        told = f"{ratio['value']:.2f}× ({ratio['low']:.2f} to {ratio['high']:.2f})"
        verdict = "reached" if ratio["value"] >= 0.97 else "missed"
        assert f"| {case['batch']} | {told} | {verdict} |" in exported
    assert "| probe |" in probe
    _, aims = page.split("## What was aimed at")
    rows = re.findall(r"^\| (.+) \| (at most )?([\d.]+) \| ([\d.]+) \| (\w+) \|$", aims, re.M)
    assert len(rows) == 16
    for name, at_most, aim, found, verdict in rows:
        met = float(found) <= float(aim) if at_most else float(found) >= float(aim)
        assert verdict == ("reached" if met else "missed"), name


def test_how_far_from_the_floor_docs_say_it_is_was_measured():
    page = " ".join((ROOT / "docs/bench.md").read_text().split())
    cases = [case for case in measured("norms")["cases"] if not case["add"]]
    both = [case["modes"]["forward+backward"] for case in cases]
    eager = math.exp(
        mean(math.log(m["seconds"]["eager"]["median"] / m["floor"]["seconds"]) for m in both)
    )
    assert f"eager torch takes {eager:.1f} times the floor" in page
    assert f"would be {eager / 4:.2f} of it" in page
    large = [
        case["modes"]["forward+backward"]["ratios"]["floor"]["value"]
        for case in measured("norms")["cases"]
        if case["tensor_bytes"] >= 1.6e7
    ]
    assert f"more run at {min(large):.2f} to {max(large):.2f} times the floor" in page


def test_the_zoo_page_tells_what_its_records_tell():
    rows = json.loads((ROOT / "docs/zoo.json").read_text()).values()
    assert len(rows) >= 25
    assert {row["verdict"] for row in rows} == {"right"}
    page = (ROOT / "docs/zoo.md").read_text()
    assert f"{len(rows)} architectures: {len(rows)} right, 0 refused, 0 wrong" in page
    assert f"[{len(rows)} networks of others](docs/zoo.md)" in README
    assert f"[别人的 {len(rows)} 个网络](docs/zoo.md)" in READMES["zh"]


@pytest.mark.slow
def test_make_study_in_a_fresh_clone(tmp_path):
    """With all of its own set-up: five verdicts, four examples, and a page.

    In preset smoke, whose runs are of the kinds of the default's: see test_records.py.
    """
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "--quiet", ROOT, clone], check=True)
    clean = {name: value for name, value in os.environ.items() if name != "VIRTUAL_ENV"}
    done = subprocess.run(
        ["make", "study", "ARGS=--preset smoke"],
        cwd=clone,
        env=clean,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    for claim in CLAIMS:
        assert say(f"terminal.claims.{claim}") in done.stdout
    assert all(f"({letter})" in done.stdout for letter in "abcd")
    (page,) = clone.glob("runs/*/report.html")
    assert page.stat().st_size < 6e6
    shutil.rmtree(clone)
