from dataclasses import fields, replace

import pytest

from spiritlevel.cli import main
from spiritlevel.errors import UsageError
from spiritlevel.train import Recipe, published_recipe
from spiritlevel.train.config import Config, house_recipe, parse_toml, read_toml, stretched

CONFIG = Config(
    "ghostnet_050",
    "folder:bilder für später",
    Recipe(lr=0.3, epochs=9, batch_size=32, schedule="steps", milestones=(3, 4.5)),
    norm="ghost:16,eps=1e-3",
    mean=(0.5, 0.25, 0.1),
    seed=2**40,
    compile=True,
    save_every=1.5,
)


def test_it_comes_back_through_toml():
    assert Config.from_dict(parse_toml(CONFIG.to_toml(), "config.toml")) == CONFIG


def test_every_field_is_written():
    told = parse_toml(CONFIG.to_toml(), "config.toml")
    assert set(told) == {field.name for field in fields(Config)}
    assert set(told["recipe"]) == {field.name for field in fields(Recipe)}


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"norms": "batch"}, "got 'norms' in a configuration, .* Did you mean norm?"),
        ({"seed": 1.5}, "got seed = 1.5; wanted a whole number"),
        ({"seed": -1}, "got seed = -1; wanted a whole number of 0 or more"),
        ({"compile": 1}, "got compile = 1; wanted true or false"),
        ({"validation": 0.9}, "got validation = 0.9; wanted a share from 0 to 0.5"),
        ({"validation": float("nan")}, "got validation = nan; wanted a share"),
        ({"amp": "bf8"}, "got amp = 'bf8'; wanted one of none, bf16, fp16"),
        ({"mean": "0.5"}, "got mean = '0.5'; wanted a list of numbers"),
        ({"image_size": 4}, "got image_size = 4; wanted 8 or more pixels, or 0"),
        ({"recipe": {"lr": 0.1, "epochs": 2}}, "got a recipe without batch_size"),
        ({"recipe": 3}, "got 3 for a recipe; wanted fields"),
    ],
)
def test_what_cannot_be_is_refused(wrong, told):
    with pytest.raises(UsageError, match=told):
        Config.from_dict({**CONFIG.to_dict(), **wrong})


def test_a_run_has_a_model_and_images():
    with pytest.raises(UsageError, match="got a run without model and data; wanted"):
        Config.from_dict({"recipe": house_recipe(3)})


def test_what_is_no_toml_is_told(tmp_path):
    path = tmp_path / "a.toml"
    for content, told in ((b"model = ", "which is no TOML"), (b"\xff", "bytes that are no UTF-8")):
        path.write_bytes(content)
        with pytest.raises(UsageError, match=told):
            read_toml(path)
    with pytest.raises(UsageError, match=r"No such file .* while reading"):
        read_toml(tmp_path / "none.toml")


def test_published_times_are_stretched():
    short = stretched("resnet-cifar", 41)
    assert short.milestones == pytest.approx((20.48, 30.72))
    assert replace(short, epochs=164, milestones=(81.92, 122.88)) == published_recipe(
        "resnet-cifar"
    )
    assert stretched("ghostnet", 40).warmup_epochs == pytest.approx(0.5)
    assert stretched("ghostnetv2", 45).period == pytest.approx(0.24)


@pytest.mark.parametrize(
    ("side", "stem", "taken"),
    [(32, "auto", "cifar"), (64, "auto", "imagenet"), (224, "cifar", "cifar")],
)
def test_small_images_have_a_stem_of_their_own(side, stem, taken):
    assert replace(CONFIG, stem=stem).stem_for(side) == taken


def settled(**given):
    from pathlib import Path

    from spiritlevel.cli.train import _settled

    return _settled({"resume": False, **given}, Path("nowhere"))


def test_options_come_before_the_file_before_the_house(tmp_path):
    path = tmp_path / "a.toml"
    path.write_text(
        'model = "vgg16"\ndata = "cifar10"\nnorm = "group:8"\nseed = 4\n'
        "[recipe]\nlr = 0.2\nepochs = 7\nbatch_size = 64\n"
    )
    found = settled(config=path, seed=5, lr=0.3, mean="0.5,0.4,0.3")
    assert (found.model, found.data, found.norm) == ("vgg16", "cifar10", "group:8")
    assert (found.seed, found.mean) == (5, (0.5, 0.4, 0.3))
    assert (found.recipe.lr, found.recipe.epochs, found.recipe.batch_size) == (0.3, 7, 64)
    assert found.recipe.label_smoothing == house_recipe(7).label_smoothing


def test_the_file_that_is_written_is_the_run(tmp_path):
    path = tmp_path / "config.toml"
    path.write_text(CONFIG.to_toml())
    assert settled(config=path) == CONFIG


def test_a_published_recipe_may_be_changed():
    found = settled(model="resnet56", data="cifar10", recipe="resnet-cifar", epochs=10, lr=0.05)
    assert (found.recipe.schedule, found.recipe.lr, found.recipe.epochs) == ("steps", 0.05, 10)
    assert found.recipe.milestones == pytest.approx((4.995, 7.493), abs=1e-3)


def test_nesterov_goes_with_sgd_alone():
    assert settled(model="vgg16", data="cifar10").recipe.nesterov
    assert not settled(model="vgg16", data="cifar10", optimizer="adamw").recipe.nesterov


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--data", "mnist5k"], "got a run without model"),
        (["small_vgg"], "got a run without data"),
        (["small_vgx", "--data", "digits"], "Did you mean small_vgg"),
        (["small_vgg", "--data", "digits", "--epochs", "0"], "got epochs = 0 in a recipe"),
        (["small_vgg", "--data", "digits", "--recipe", "mine"], "got recipe 'mine'; wanted one"),
        (["small_vgg", "--data", "digits", "--mean", "x"], "--mean"),
        (["small_vgg", "--data", "digits", "--resume"], "got --resume without --out"),
        (["small_vgg", "--config", "none.toml"], "while reading none.toml"),
    ],
)
def test_wrong_use_is_one_line_and_exit_2(words, told, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["train", *words]) == 2
    error = capsys.readouterr().err
    assert told in " ".join(error.split())
    assert "Traceback" not in error
    assert not list(tmp_path.iterdir())
