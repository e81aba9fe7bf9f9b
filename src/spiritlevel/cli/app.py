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

_ANY = "Any command takes --lang and --debug."

app = typer.Typer(
    no_args_is_help=True,
    invoke_without_command=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help=f"Batch normalization you can see, trust and ship. {_ANY}",
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


app.command("explain", context_settings=explain.CONTEXT, epilog=_ANY)(explain.explain)
app.command("check", epilog=_ANY)(check.check)
app.command("rule", epilog=_ANY)(check.rule)
app.command("eval", epilog=_ANY)(evaluate.evaluate)
app.command("predict", epilog=_ANY)(predict.predict)
app.command("export", epilog=_ANY)(export.export)
app.command("study", epilog=_ANY)(study.study)
app.command("report", epilog=_ANY)(study.report)
app.command("train", epilog=_ANY)(train.train)
app.command("models", epilog=_ANY)(models.models)
app.command("env", epilog=_ANY)(env.env)
app.add_typer(bench.app, name="bench")
