"""The options that name images and how they are fed, alike in every command that takes some."""

from __future__ import annotations

from typing import Any

import typer

__all__ = ["data", "image_size", "mean", "std"]


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
