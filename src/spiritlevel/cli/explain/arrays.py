"""The steps for every channel of an array, and what eval() makes of them."""

from __future__ import annotations

from fractions import Fraction

from spiritlevel import explain as arithmetic
from spiritlevel.catalogue import listed, say
from spiritlevel.cli.explain.page import Page, scaled, setting, times
from spiritlevel.explain import BatchExplanation, readable

__all__ = ["print_batch"]


def print_batch(page: Page, told: BatchExplanation) -> None:
    page.title(say("explain.title_array", shape=times(told.shape), axes=times(told.axes)))
    _print_together(page, told)
    channels = told.channels
    page.step(say("explain.statistics"))
    page.prose(say("explain.statistics_text", count=f"{told.count:,}"))
    page.table(
        ("channel", "mean", "biased", "unbiased"),
        len(channels),
        lambda c: row(c, channels[c].mean, channels[c].variance, channels[c].unbiased_variance),
    )
    page.step(say("explain.normalized_array"))
    page.formula(say("explain.formula_normalized", eps=setting(told.eps)))

    def normalized(c: int) -> list[str]:
        mean, variance = channels[c].normalized_mean, channels[c].normalized_variance
        return row(c, mean and round(mean, 12), variance)  # 1e-17 is the float's own rounding

    page.table(("channel", "mean", "variance"), len(channels), normalized)
    undefined = any(channel.normalized_mean is None for channel in channels)
    page.prose(say("explain.constant_array" if undefined else "explain.check_array"))
    page.step(say("explain.running"))
    if told.running:
        _print_running(page, told)
    else:
        page.prose(say("explain.running_refused"))


def _print_together(page: Page, told: BatchExplanation) -> None:
    page.step(say("explain.together"))
    axes = told.axes.replace("C", "")
    sizes = [size for axis, size in enumerate(told.shape) if axis != 1]
    product = f"{times(sizes)} = {told.count:,}" if len(sizes) > 1 else f"{told.count:,}"
    page.prose(
        say(
            "explain.together_text",
            axes=listed(axes),
            channels=f"{len(told.channels):,}",
            product=product,
        )
    )
    shown = [[f"{value:g}" for value in channel.values] for channel in told.channels]
    if shown[0]:
        width = max(len(word) for words in shown for word in words)
        page.table(
            ("channel", "values"),
            len(shown),
            lambda c: [str(c), "  ".join(f"{word:>{width}}" for word in shown[c])],
        )


def _print_running(page: Page, told: BatchExplanation) -> None:
    values = {"momentum": setting(told.momentum), "value": f"{told.first_value:g}"}
    page.prose(say("explain.running_text", **values))
    result = say("explain.formula_eval", eps=setting(told.eps))
    page.formulas(
        {
            say("explain.name_running"): say("explain.formula_running"),
            "eval()": scaled(result, Fraction(told.gamma), Fraction(told.beta)),
        }
    )
    steps, train = told.running, told.train_output
    page.table(
        ("step", "running_mean", "running_variance", "eval", "train"),
        len(steps),
        lambda i: row(
            say("explain.at_last") if steps[i].step is None else steps[i].step,
            steps[i].running_mean,
            steps[i].running_variance,
            steps[i].eval_output,
            train,
        ),
    )
    page.gap()
    page.item(_settling(told))
    if told.momentum and row("", train) != row("", steps[-1].eval_output):
        page.item(say("explain.settles_short", count=told.count, count_less=told.count - 1))
    page.item(say("explain.running_moral"))


def _settling(told: BatchExplanation) -> str:
    if told.momentum == 0:
        return say("explain.settles_never")
    if told.running[-1].eval_output is None:
        return say("explain.settles_nowhere")
    values = {"percent": f"{100 * arithmetic.SETTLED:g}", "most": f"{arithmetic.MAX_STEPS:,}"}
    if told.steps_to_settle is None:
        return say("explain.settles_late", **values)
    if told.steps_to_settle == 0:
        return say("explain.settles_at_once", **values)
    return say("explain.settles", steps=f"{told.steps_to_settle:,}", **values)


def row(name: object, *numbers: float | None) -> list[str]:
    # 12 digits: 0.1 that a float holds as 0.0999... is still read as 0.1000.
    cells = ("0/0" if x is None else readable(float(f"{x:.12g}")) for x in numbers)
    return [str(name), *cells]
