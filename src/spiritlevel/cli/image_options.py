"""The options that name images, models and how they are fed, alike in every command."""

from __future__ import annotations

from typing import Any

import typer

__all__ = ["data", "device", "image_size", "mean", "model", "std"]


def data(panel: str) -> Any:
    told = "mnist5k, digits, mnist, fashion-mnist, cifar10, folder:PATH or hf:NAME."
    return typer.Option(help=told, rich_help_panel=panel)


def image_size(panel: str) -> Any:
    return typer.Option(
        help="Pixels a side that images are read and fed at.", rich_help_panel=panel
    )


def mean(panel: str) -> Any:
    told = "Of each channel, as 0.49,0.48,0.45, to standardise by."
    return typer.Option(metavar="NUMBERS", help=told, rich_help_panel=panel)


def std(panel: str) -> Any:
    return typer.Option(metavar="NUMBERS", help="As --mean.", rich_help_panel=panel)


def model(panel: str) -> Any:
    told = "One of ours, or pkg.module:factory, for weights that do not tell."
    return typer.Option(metavar="NAME", help=told, rich_help_panel=panel)


def device(panel: str) -> Any:
    told = "auto (default), cpu, cuda or cuda:N."
    return typer.Option(help=told, rich_help_panel=panel)
