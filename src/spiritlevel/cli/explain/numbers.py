"""The steps for a few numbers, exact and rounded."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

from spiritlevel import explain as arithmetic
from spiritlevel.catalogue import say
from spiritlevel.cli.explain.page import (
    Page,
    cell,
    equals,
    listed_sum,
    near_one,
    scaled,
    setting,
    short,
)
from spiritlevel.explain import (
    Exact,
    Explanation,
    Normalized,
    RoundedEarly,
    decimal,
    exact,
    readable,
    root,
    rounded,
)

__all__ = ["print_numbers"]


def print_numbers(page: Page, told: Explanation) -> None:
    count = len(told.values)
    page.title(say("explain.title", count=f"{count:,}") if count > 1 else say("explain.title_one"))
    page.step(say("explain.mean"))
    page.formula(f"{_name('mean')} = {listed_sum(told.values)} / {count} {equals(told.mean)}")
    page.step(say("explain.differences"))
    columns = told.values, told.differences, told.squares
    page.table(
        ("x", "difference", "square"), count, lambda i: [cell(column[i]) for column in columns]
    )
    page.step(say("explain.variance"))
    variance = _name("variance")
    page.formula(f"{variance} = {listed_sum(told.squares)} / {count} {equals(told.variance)}")
    page.step(say("explain.deviation_eps" if told.eps else "explain.deviation"))
    under = f"({variance} + {setting(told.eps)})" if told.eps else variance
    page.formula(f"{_name('deviation')} = √{under} {equals(told.deviation)}")
    page.step(say("explain.normalized"))
    if told.normalized:
        _print_normalized(page, told, told.normalized)
    else:
        page.prose(say("explain.constant", eps=setting(arithmetic.TORCH_EPS)))
    _print_layer(page, told)


def _print_normalized(page: Page, told: Explanation, normalized: Normalized) -> None:
    _print_results(page, "x", told.values, normalized.results)
    check = "check_eps" if told.eps else "check"
    check = check if told.variance else "check_constant"
    values = {"mean": cell(normalized.mean), "variance": near_one(normalized.variance)}
    page.prose(say(f"explain.{check}", **values))
    if _scales(told):
        page.step(say("explain.scale"))
        page.formula(f"y = {scaled(_name('normalized'), told.gamma, told.beta)}")
        _print_results(page, "normalized", normalized.results, normalized.outputs)
        variance = cell(told.gamma**2 * normalized.variance)
        page.prose(say("explain.check_scale", mean=cell(told.beta), variance=variance))
    if normalized.rounded_early:
        _print_rounding(page, told, normalized, normalized.rounded_early)


def _print_results(page: Page, name: str, given: Sequence[Exact], results: Sequence[Exact]) -> None:
    told = [exact(result) or "" for result in results]
    columns = (name, "exact", "rounded") if any(told) else (name, "rounded")

    def row(i: int) -> list[str]:
        return [cell(given[i]), *([told[i]] if any(told) else []), rounded(results[i])]

    page.table(columns, len(results), row)


def _print_rounding(
    page: Page, told: Explanation, normalized: Normalized, early: RoundedEarly
) -> None:
    values = {
        "difference": cell(early.difference),
        "deviation": cell(told.deviation),
        "result": rounded(early.result),
        "late": rounded(early.result, 2),
        "deviation_early": rounded(early.deviation, 2),
        "result_early": rounded(early.result_early),
        "early": rounded(early.result_early, 2),
        "variance_early": near_one(early.variance),
        "variance": near_one(normalized.variance),
    }
    page.aside(say("explain.rounding", **values))
    page.prose(say("explain.rounding_text", **values))


def _print_layer(page: Page, told: Explanation) -> None:
    page.aside(say("explain.layer"))
    if not _scales(told):
        page.item(say("explain.layer_scale"))
    if told.variance and not told.eps:
        _print_torch_eps(page, told.variance_with_torch_eps)
    if told.unbiased_variance is None or told.running_variance is None:
        page.item(say("explain.layer_running_one"))
        return
    new = told.momentum
    page.item(say("explain.layer_running", momentum=cell(new)))
    over = f"{listed_sum(told.squares)} / {len(told.values) - 1}"
    formulas = {_name("unbiased_variance"): f"{over} {equals(told.unbiased_variance)}"}
    for name, start, batch, result in (
        ("running_mean", 0, told.mean, told.running_mean),
        ("running_variance", 1, told.unbiased_variance, told.running_variance),
    ):
        terms = f"{cell(1 - new)} * {start} + {cell(new)} * {cell(batch)}"
        formulas[_name(name)] = f"{terms} {equals(result)}"
    page.formulas(formulas, indent=2)


def _print_torch_eps(page: Page, variance: Fraction) -> None:
    less = 100 * (1 - Fraction(decimal(root(variance))))
    key = "explain.torch_eps" if less < 1 else "explain.torch_eps_large"
    values = {"percent": short(less), "variance": readable(variance)}
    page.item(say(key, eps=setting(arithmetic.TORCH_EPS), **values))


def _name(what: str) -> str:
    return say(f"explain.name_{what}")


def _scales(told: Explanation) -> bool:
    return told.gamma != 1 or told.beta != 0
