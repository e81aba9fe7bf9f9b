"""The commands, each a thin call into the room that does the work."""

from __future__ import annotations

import typer

from spiritlevel.cli import explain

__all__ = ["app"]

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Batch normalization you can see, trust and ship. Any command takes --debug.",
)
app.command("explain", context_settings=explain.CONTEXT)(explain.explain)
