"""The commands, each a thin call into the room that does the work."""

from __future__ import annotations

from typing import Annotated

import typer

from spiritlevel import __version__
from spiritlevel.cli import (
    bench,
    check,
    env,
    evaluate,
    explain,
    export,
    models,
    predict,
    study,
    train,
)

__all__ = ["app"]

app = typer.Typer(
    no_args_is_help=True,
    invoke_without_command=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Batch normalization you can see, trust and ship. Any command takes --lang and --debug.",
)


@app.callback()
def _options(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
    _lang: Annotated[  # taken out of the arguments before they come here
        str | None,
        typer.Option("--lang", metavar="[en|zh]", help="Unless given, as the locale says."),
    ] = None,
) -> None:
    if version:
        print(__version__)
        raise typer.Exit


app.command("explain", context_settings=explain.CONTEXT)(explain.explain)
app.command("check")(check.check)
app.command("rule")(check.rule)
app.command("eval")(evaluate.evaluate)
app.command("predict")(predict.predict)
app.command("export")(export.export)
app.command("study")(study.study)
app.command("report")(study.report)
app.command("train")(train.train)
app.command("models")(models.models)
app.command("env")(env.env)
app.add_typer(bench.app, name="bench")
