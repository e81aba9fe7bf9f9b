"""`spiritlevel train`."""

from __future__ import annotations

import json
import os
from dataclasses import fields
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from spiritlevel.catalogue import say
from spiritlevel.cli import ended, image_options, last_words, put_off
from spiritlevel.errors import TrainingError, UsageError

if TYPE_CHECKING:
    from torch import nn

    from spiritlevel.data import Images
    from spiritlevel.train.config import Config
    from spiritlevel.train.start import Outcome

__all__ = ["train"]

_DATA, _RECIPE, _MACHINE, _RUN = "Images", "Recipe", "Machine", "Run"
_EPOCHS = 30


def _recipe(help: str, **more: Any) -> Any:
    return typer.Option(help=help, rich_help_panel=_RECIPE, **more)


def _machine(help: str, *names: str) -> Any:
    return typer.Option(*names, help=help, rich_help_panel=_MACHINE)


def _run(help: str, *names: str, **more: Any) -> Any:
    return typer.Option(*names, help=help, rich_help_panel=_RUN, **more)


def train(
    context: typer.Context,
    model: Annotated[
        str | None,
        typer.Argument(help="One of `spiritlevel models`, or pkg.module:factory."),
    ] = None,
    data: Annotated[str | None, image_options.data(_DATA)] = None,
    image_size: Annotated[int | None, image_options.image_size(_DATA)] = None,
    mean: Annotated[str | None, image_options.mean(_DATA)] = None,
    std: Annotated[str | None, image_options.std(_DATA)] = None,
    augment: Annotated[
        Literal["none", "crop", "crop-flip"] | None,
        typer.Option(help="Moved by up to 4 pixels, and mirrored.", rich_help_panel=_DATA),
    ] = None,
    validation: Annotated[
        float | None,
        typer.Option(
            help="Share of the training images that chooses the best weights. (default: 0.1)",
            rich_help_panel=_DATA,
        ),
    ] = None,
    norm: Annotated[
        str | None, _recipe("batch (default), sync, ghost:16, group:8, none ...")
    ] = None,
    stem: Annotated[
        Literal["auto", "imagenet", "cifar"] | None, _recipe("cifar below 64 pixels. (auto)")
    ] = None,
    recipe: Annotated[
        str | None,
        _recipe("A published one: ghostnet, ghostnetv2, vgg-cifar, resnet-cifar.", metavar="NAME"),
    ] = None,
    epochs: Annotated[int | None, _recipe(f"Passes over the images. (default: {_EPOCHS})")] = None,
    lr: Annotated[float | None, _recipe("Largest learning rate. (default: 0.1)")] = None,
    batch_size: Annotated[
        int | None, _recipe("Images of an update, on all processes together. (default: 128)")
    ] = None,
    optimizer: Annotated[
        Literal["sgd", "adamw", "rmsprop"] | None, _recipe("(default: sgd)")
    ] = None,
    momentum: Annotated[float | None, _recipe("(default: 0.9)")] = None,
    nesterov: Annotated[bool | None, _recipe("(default: on, with sgd)")] = None,
    weight_decay: Annotated[
        float | None, _recipe("Not of norms, biases and cheap kernels. (default: 5e-4)")
    ] = None,
    label_smoothing: Annotated[float | None, _recipe("(default: 0.1)")] = None,
    schedule: Annotated[
        Literal["cosine", "steps", "periodic"] | None, _recipe("Of the rate. (default: cosine)")
    ] = None,
    warmup_epochs: Annotated[float | None, _recipe("(default: 5, at most a fifth)")] = None,
    ema_decay: Annotated[
        float | None,
        _recipe("Of the averaged weights and statistics; 0: none. (default: 0.999)"),
    ] = None,
    clip_norm: Annotated[float | None, _recipe("Of the gradient. (default: 0, not at all)")] = None,
    accumulate: Annotated[int | None, _recipe("Passes an update. (default: 1)")] = None,
    mixup: Annotated[float | None, _recipe("Its alpha. (default: 0, none)")] = None,
    cutmix: Annotated[float | None, _recipe("Its alpha. (default: 0, none)")] = None,
    dropout: Annotated[float | None, _recipe("Before the classifier. (default: 0)")] = None,
    init: Annotated[Literal["torch", "he"] | None, _recipe("(default: torch)")] = None,
    device: Annotated[str | None, _machine("auto (default), cpu, cuda or cuda:N.")] = None,
    amp: Annotated[
        Literal["none", "bf16", "fp16"] | None, _machine("Mixed precision. (default: none)")
    ] = None,
    channels_last: Annotated[bool | None, _machine("(default: on)")] = None,
    compile: Annotated[bool | None, _machine("By torch.compile. (default: off)")] = None,
    out: Annotated[Path | None, _run("Its folder. (default: runs/MODEL-TIME)")] = None,
    resume: Annotated[bool, _run("Go on with the run in --out, or begin it.", "--resume")] = False,
    config: Annotated[Path | None, _run("All options from a TOML file.", metavar="FILE")] = None,
    seed: Annotated[int | None, _run("Of weights, order and chance. (default: 0)")] = None,
    probe: Annotated[
        int | None, _run("Read every normalization layer each so many steps; writes probe.html.")
    ] = None,
    check: Annotated[bool | None, _run("Check the model at the end. (default: on)")] = None,
    save_every: Annotated[
        float | None, _run("Seconds from checkpoint to checkpoint. (default: 60)")
    ] = None,
    as_json: Annotated[bool, _run("Print the result as JSON.", "--json")] = False,
) -> int:
    """Train a network on images: nothing is lost when it is stopped, and the test images are
    looked at once, at the end. With torchrun, on as many processes as there are."""
    from spiritlevel.train.group import Echo, LostError, ToldError, place
    from spiritlevel.train.progress import Stopped
    from spiritlevel.train.start import run

    given = {name: value for name, value in context.params.items() if value is not None}
    folder = _folder(out, model, resume)
    settled = _settled(given, folder)
    leads = place().rank == 0
    build, told = _builder(settled)
    from spiritlevel.cli.progress import Steps

    with Steps(quiet=not leads) as bar:
        for line in told:
            bar.say(line)
        bar.say(say("terminal.train.run", folder=folder))
        try:
            with put_off() as stop:
                outcome = run(settled, folder, resume=resume, build=build, tell=bar.tell, stop=stop)
        except Stopped as stopped:
            ended[:] = ended or [stopped.number]
            bar.say(say("terminal.train.stopped", step=stopped.step, folder=folder))
            last_words.append("stopped")
            raise
        except (Echo, LostError, ToldError) as error:
            if leads:
                raise
            # The leader tells it, or the one that is lost did.
            raise typer.Exit(1 if isinstance(error, TrainingError) else 2) from None
    if outcome.result is not None:
        _finish(outcome, folder, as_json)
    return 0


def _folder(out: Path | None, model: str | None, resume: bool) -> Path:
    if out is not None:
        return out
    if resume or "WORLD_SIZE" in os.environ:
        why = "--resume" if resume else "torchrun, whose processes share a folder"
        raise UsageError(f"got {why} without --out; wanted the folder of the run. Add --out DIR")
    name = (model or "run").partition(":")[0].replace("/", "-")
    return Path("runs") / f"{name}-{datetime.now():%Y%m%d-%H%M%S}"


def _settled(given: dict[str, Any], folder: Path) -> Config:
    """Options before the file of --config, or that of a run that is gone on with, before ours."""
    from spiritlevel.cli.study import numbers
    from spiritlevel.train.config import Config, house_recipe, read_toml, stretched
    from spiritlevel.train.recipe import Recipe
    from spiritlevel.train.training import CONFIG

    told: dict[str, Any] = {}
    if "config" in given:
        told = read_toml(given["config"])
    elif (folder / CONFIG).is_file() and given["resume"]:
        told = read_toml(folder / CONFIG)
    recipe = told.pop("recipe", {})
    if not isinstance(recipe, dict):
        raise UsageError(f"got recipe = {recipe!r}; wanted a table of it, under [recipe]")
    epochs: Any = given.get("epochs", recipe.get("epochs", _EPOCHS))
    name = given.get("recipe")
    base = house_recipe(epochs) if name is None else stretched(name, epochs)
    asked = {each.name for each in fields(Recipe)} & given.keys()
    chosen = {name: given[name] for name in asked}
    if chosen.get("optimizer", recipe.get("optimizer", base.optimizer)) != "sgd":
        chosen.setdefault("nesterov", recipe.get("nesterov", False))
    merged = base.to_dict() | ({} if name else recipe) | chosen
    own = {each.name for each in fields(Config)} & given.keys() - {"recipe", "mean", "std"}
    for option in ("mean", "std"):
        if option in given:
            told[option] = numbers(f"--{option}", given[option], float)
    told |= {name: given[name] for name in own}
    return Config.from_dict({**told, "recipe": merged})


def _builder(config: Config) -> tuple[Any, list[str]]:
    """What builds a model of the user's, and what is said of it; None for ours."""
    from spiritlevel.cli import subject
    from spiritlevel.cli.lines import tell
    from spiritlevel.train.group import place

    builder = subject.builder(config.model)
    if builder.factory is None:
        return None, []

    def build(config: Config, images: Images) -> nn.Module:
        model = subject.trained_on(builder, images, config.norm)
        log = getattr(model, "spiritlevel_log", [])
        left = [entry for entry in log if entry.action == "left"]
        if left and place().rank == 0:
            tell("\n".join(map(str, left)))
        return model

    return build, [told] if (told := builder.told()) is not None else []


def _finish(outcome: Outcome, folder: Path, as_json: bool) -> None:
    from spiritlevel.cli.findings import print_findings

    result = outcome.result
    assert result is not None
    if as_json:
        print(json.dumps(result, indent=2))
        return
    if outcome.diagnosis is not None:
        print_findings(outcome.diagnosis)
    for name in ("best", "last"):
        found = result["test"][name]
        low, high = found["interval"]
        epoch = int(result["best"]["epoch"]) if name == "best" else result["epochs"]
        print(
            say(
                "terminal.train.tested",
                name=name,
                epoch=epoch,
                accuracy=found["accuracy"],
                low=low,
                high=high,
                images=found["images"],
            )
        )
    print(say("terminal.train.next", folder=folder, data=result["data"]))
