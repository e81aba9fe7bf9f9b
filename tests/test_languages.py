"""Every language says all that English says, and who asks for one gets it."""

from __future__ import annotations

import re
import threading
from collections import Counter
from string import Formatter

import pytest
import torch
from seen import ENGLISH, ILL_SPACED, seen
from torch import nn

import spiritlevel as sl
from spiritlevel.catalogue import (
    columns,
    keys,
    language_of,
    languages,
    listed,
    say,
    sentence,
    speaking,
    spoken,
)
from spiritlevel.cli import main
from spiritlevel.cli.lines import wrapped
from spiritlevel.errors import UsageError
from spiritlevel.study import Study, study

OTHERS = [language for language in languages() if language != "en"]
HAN = re.compile(r"[\u3400-\u9fff]")

# What any language writes as English does, and why.
ALIKE = {
    "symbols": {
        "examples.arithmetic.x",
        "explain.column_x",
        "labels.beta_norm2",
        "labels.inverse_n",
        "page.sample",
        "page.sample_head",
        "page.undecided",
        "diagnosis_page.nothing",
    },
    "calls and terms of the field": {
        "explain.column_eval",
        "explain.column_train",
        "labels.noise_logits",
    },
    "names": {"inits.he", "inits.xavier", "networks.ghostnet_050", "terminal.env.numba"},
    "nothing but what is filled in": {"page.plain"},
}


def placeholders(text: str) -> set[tuple[str, str, str]]:
    """Each with its format: {share:.1%} is not {share}."""
    found = Formatter().parse(text)
    return {(name, form or "", kind or "") for _, name, form, kind in found if name is not None}


def tags(text: str) -> Counter[str]:
    return Counter(re.findall(r"</?[a-z]+[^>]*>", text))


def test_english_and_chinese_are_there():
    assert set(languages()) >= {"en", "zh"}


@pytest.mark.parametrize("language", OTHERS)
def test_no_sentence_is_missing_or_left_over(language):
    assert set(keys("en")) - set(keys(language)) == set()
    assert set(keys(language)) - set(keys("en")) == set()


@pytest.mark.parametrize("language", OTHERS)
def test_each_sentence_has_the_placeholders_and_the_html_of_the_english_one(language):
    for key in keys("en"):
        english, other = sentence(key, "en"), sentence(key, language)
        assert placeholders(other) == placeholders(english), key
        assert tags(other) == tags(english), key
        assert bool(other) or key.startswith("joints."), key


@pytest.mark.parametrize("language", OTHERS)
def test_no_sentence_is_left_in_english(language):
    alike = {key for key in keys("en") if sentence(key, "en") == sentence(key, language)}
    assert alike == set().union(*ALIKE.values())


def test_chinese_has_its_own_signs_and_a_space_beside_latin_text():
    for key in keys("zh"):
        if "formula_" in key or key == "explain.column_square":
            continue
        text = re.sub(r"<.*?>|`.*?`", "", sentence(key, "zh"))
        wrong = re.search(
            r"[一-鿿][,;:?!.]|[,;:?!][一-鿿]|[一-鿿][A-Za-z0-9]|[A-Za-z0-9][一-鿿]", text
        )
        assert wrong is None, (key, wrong[0])
        assert (
            HAN.search(text)
            or key in set().union(*ALIKE.values())
            or not re.search(r"[A-Za-z]{3,} [A-Za-z]{3,}", re.sub(r"\{.*?\}", "", text))
        ), key


@pytest.mark.parametrize(
    ("environment", "wanted"),
    [
        ({}, "en"),
        ({"LANG": "zh_CN.UTF-8"}, "zh"),
        ({"LANG": "zh_TW"}, "zh"),
        ({"LANG": "zh"}, "zh"),
        ({"LANG": "zh_CN.UTF-8@pinyin"}, "zh"),
        ({"LANG": "zh-Hans"}, "zh"),
        ({"LANG": "de_DE.UTF-8"}, "en"),
        ({"LANG": "zha"}, "en"),
        ({"LANG": "zh_CN.UTF-8", "LC_MESSAGES": "en_US.UTF-8"}, "en"),
        ({"LANG": "en_US.UTF-8", "LC_MESSAGES": "zh_CN.UTF-8"}, "zh"),
        ({"LC_ALL": "en_US.UTF-8", "LC_MESSAGES": "zh_CN.UTF-8"}, "en"),
        ({"LC_ALL": "", "LC_MESSAGES": "", "LANG": "zh_CN.UTF-8"}, "zh"),
        ({"LANG": "en_US.UTF-8", "LANGUAGE": "zh_CN:en"}, "zh"),
        ({"LANG": "zh_CN.UTF-8", "LANGUAGE": "en"}, "en"),
        ({"LANG": "de_DE.UTF-8", "LANGUAGE": "de:zh:en"}, "zh"),
        ({"LANG": "zh_CN.UTF-8", "LANGUAGE": "de"}, "zh"),
        ({"LANG": "C.UTF-8", "LANGUAGE": "zh"}, "en"),
        ({"LANGUAGE": "zh"}, "en"),
        ({"LC_ALL": "POSIX", "LANG": "zh_CN.UTF-8"}, "en"),
    ],
)
def test_the_locale_is_read_as_gettext_reads_it(environment, wanted):
    assert language_of(environment) == wanted


def test_what_is_spoken_inside_is_not_spoken_outside():
    assert spoken() == "en"
    with speaking("zh"):
        assert say("page.answer") == "答案"
        with speaking("en"):
            assert say("page.answer") == "The answer"
        with speaking(None):
            assert say("page.answer") == "答案"
    assert say("page.answer") == "The answer"
    with pytest.raises(UsageError), speaking("zh"):
        raise UsageError("in the middle")
    assert spoken() == "en"


def test_another_thread_is_not_spoken_for():
    told = []
    with speaking("zh"):
        thread = threading.Thread(target=lambda: told.append(say("page.answer")))
        thread.start()
        thread.join()
    assert told == ["The answer"]


@pytest.mark.parametrize("language", ["zh-CN", "zh_CN", "zh-Hans", "ZH", "zh_CN.UTF-8"])
def test_a_language_may_be_named_as_a_page_or_a_locale_names_it(capsys, language):
    with speaking(language):
        assert spoken() == "zh"
    assert say("page.answer", language) == "答案"
    assert "批归一化" in explained(capsys, "1", "3", "5", "--lang", language)


@pytest.mark.parametrize("language", ["fr", "fr-FR", "", "-", "../zh", "zh/CN", "zha"])
def test_a_language_that_is_not_there_is_refused_with_those_that_are(language):
    with pytest.raises(UsageError, match=r"got language .*; there is: en, zh$"), speaking(language):
        pass


@pytest.mark.parametrize("language", [5, b"zh", ["zh"]])
def test_what_is_no_text_is_no_language(language):
    wanted = f"got {type(language).__name__} as language; wanted one of: en, zh"
    with pytest.raises(UsageError, match=wanted), speaking(language):
        pass


def test_a_list_in_words():
    assert [listed(list(text)) for text in ("N", "NH", "NHW")] == ["N", "N and H", "N, H and W"]
    with speaking("zh"):
        assert [listed(list(text)) for text in ("N", "NH", "NHW")] == ["N", "N、H", "N、H、W"]
        assert listed(["N", "H", "W"], "either") == "N、H或W"
    assert listed(["N", "H", "W"], "either") == "N, H or W"


@pytest.mark.parametrize("width", [20, 33, 34, 60])
def test_han_text_breaks_anywhere_but_before_and_behind_its_signs(width):
    text = f"- {say('explain.running_moral', 'zh')}（“{say('explain.layer_running_one', 'zh')}”）"
    lines = wrapped(text, width, hanging="  ")
    assert "".join("".join(lines).split()) == "".join(text.split())
    assert max(map(columns, lines)) <= width + 2  # a sign that closes may hang
    assert all(columns(line) > width - 14 for line in lines[:-1])
    for line in lines:
        assert line.strip()[0] not in "，。、：；？！）”"
        assert line.strip()[-1] not in "（“"
        assert line == line.rstrip()
    assert all(line.startswith("  ") for line in lines[1:])


def explained(capsys, *arguments: str) -> str:
    assert main(["explain", *arguments]) == 0
    return capsys.readouterr().out


def test_explain_speaks_the_language_that_is_asked_for(capsys):
    told = explained(capsys, "1", "3", "5", "--lang", "zh").splitlines()
    assert told[0] == "3 个数的批归一化，逐步演算"
    assert "   标准差 = √方差 = √(8/3) ≈ 1.6330" in told
    assert "     滑动方差 = 0.9 * 1 + 0.1 * 4 = 1.3" in told
    assert explained(capsys, "--lang=zh", "1", "3", "5").splitlines() == told
    assert explained(capsys, "1", "3", "5").startswith("Batch normalization of 3 numbers")
    assert main(["--lang", "zh", "explain", "1", "3", "5"]) == 0
    assert capsys.readouterr().out.splitlines() == told


def test_explain_speaks_the_language_of_the_locale(capsys, monkeypatch):
    monkeypatch.setenv("LC_ALL", "zh_CN.UTF-8")
    assert "批归一化" in explained(capsys, "1", "3", "5")
    assert not HAN.search(explained(capsys, "1", "3", "5", "--lang", "en"))


def test_scripts_get_the_same_json_in_any_language(capsys):
    told = explained(capsys, "1", "3", "5", "--json")
    assert explained(capsys, "1", "3", "5", "--json", "--lang", "zh") == told


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (["--lang", "fr"], "got language 'fr', which has no catalogue; there is: en, zh"),
        (["--lang"], "got --lang without a language; there is: en, zh"),
        (["--lang="], "got language '', which has no catalogue; there is: en, zh"),
    ],
)
def test_a_language_that_a_command_cannot_speak_is_wrong_use(capsys, arguments, wanted):
    assert main(["explain", "1", "3", "5", *arguments]) == 2
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", f"spiritlevel: {wanted}\n")


def test_the_columns_of_a_table_stand_beneath_each_other(capsys):
    lines = explained(capsys, "1", "3", "5", "--lang", "zh").splitlines()
    at = next(i for i, line in enumerate(lines) if "(x - 均值) 的平方" in line)
    assert {columns(line) for line in lines[at : at + 4]} == {columns(lines[at])}


def test_a_check_and_a_probe_draw_their_page_in_the_language_asked_for(tmp_path):
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    with sl.Probe(model, every=1) as probe:
        model(torch.randn(8, 4)).sum().backward()
    found = sl.check(model)
    for language, tag in (("zh", "zh-CN"), ("en", "en")):
        page = probe.report(tmp_path / f"{language}.html", lang=language).read_text()
        for html in (page, found.to_html(lang=language)):
            assert f'<html lang="{tag}">' in html
            assert bool(HAN.search(html)) == (language == "zh")


def english(page: str, allowed: set[str]) -> list[str]:
    """What is left of it, less the pieces that are English in any language."""
    texts = {" ".join(re.sub(r"\{\w+\}", "…", text).split()) for text in seen(page)}
    wrong = re.compile(f"{ENGLISH.pattern}|{ILL_SPACED.pattern}")
    return sorted(text for text in texts - allowed if wrong.search(text))


def test_a_probe_page_in_chinese_has_no_english_left(tmp_path):
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.ReLU())
    with sl.Probe(model, every=1) as probe:
        for _ in range(3):
            model(torch.randn(8, 4)).sum().backward()
            model.zero_grad()
    page = probe.report(tmp_path / "zh.html", lang="zh").read_text()
    heading = "Sequential 训练时，各层看到了什么"
    assert f"<h1>{heading}</h1>" in page
    assert f"<title>{heading}</title>" in page
    assert english(page, allowed=set(probe.unseen)) == []
    assert english(probe.report(tmp_path / "en.html").read_text(), allowed=set()) != []


def test_a_diagnosis_page_in_chinese_has_english_in_its_findings_alone():
    """Their messages, fixes and evidence; gap and notes come from the check."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4, bias=True), nn.BatchNorm1d(4), nn.Linear(4, 2))
    batches = [(torch.randn(16, 4) + 3, torch.randint(2, (16,))) for _ in range(4)]
    found = sl.check(model, batches)
    told = found.to_dict()
    assert told["findings"]
    assert told["gap"]
    allowed = {" ".join(str(each[part]).split()) for each in told["findings"] for part in FINDING}
    for each in told["findings"]:
        allowed |= {str(piece) for pair in each["evidence"].items() for piece in pair}
    allowed |= {*told["notes"], *(told["gap"].get("notes") or [])}
    assert english(found.to_html(lang="zh"), allowed) == []
    assert english(found.to_html(lang="en"), allowed) != []


FINDING = ("message", "fix", "name")


@pytest.mark.slow
def test_a_study_in_chinese_leaves_records_without_a_language(tmp_path):
    found = study(preset="smoke", data="digits", out=tmp_path, live=True, lang="zh")
    assert "论断" in found._repr_html_()
    page = (tmp_path / "report.html").read_text()  # as it was drawn while the run went
    assert '<html lang="zh-CN">' in page
    assert "研究正在运行" in page
    others = [path for path in tmp_path.iterdir() if path.name != "report.html"]
    assert {"config.json", "environment.json", "records.jsonl"} <= {path.name for path in others}
    assert [path for path in others if HAN.search(path.read_text())] == []
    assert not HAN.search(Study.load(tmp_path).report(lang="en").read_text())
