"""The user's own network: real modules in a real folder, and what each mistake is told."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import textwrap
from functools import partial

import pytest
import torch
from torch import nn

from spiritlevel.errors import UsageError
from spiritlevel.nn import norm_layer
from spiritlevel.probe import norm_places
from spiritlevel.study.factory import Factory, as_factory, load_factory

MODELS = """\
import torch
from torch import nn
from spiritlevel.nn import norm_layer as make_layer


def net(num_classes, in_chans, norm):
    return nn.Sequential(
        nn.Conv2d(in_chans, 8, 3, padding=1), norm, nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, num_classes),
    )


def build(num_classes, in_chans, norm):
    return net(num_classes, in_chans, make_layer(norm)(8))


def by_layer(classes, in_channels, norm_layer, width=8):
    return net(classes, in_channels, norm_layer(width))


def open_ended(in_chans=1, **options):
    assert options.keys() == {"num_classes", "norm"}, options
    return build(in_chans=in_chans, **options)


def sized(num_classes, in_chans, norm, img_size):
    return nn.Sequential(nn.Flatten(), nn.Linear(in_chans * img_size**2, num_classes),
                         make_layer(norm, dim=1)(num_classes))


def lazy(num_classes, norm):
    return nn.Sequential(nn.LazyConv2d(8, 3), make_layer(norm)(8), nn.Flatten(),
                         nn.LazyLinear(num_classes))


class Models:
    class Small(nn.Module):
        def __init__(self, num_classes, in_chans, norm="batch"):
            super().__init__()
            self.body = build(num_classes, in_chans, norm)

        def forward(self, x):
            return self.body(x)


def no_norm(num_classes=10):
    return net(num_classes, 1, nn.BatchNorm2d(8))


def stuck(num_classes, in_chans, norm):
    return nn.Sequential(net(num_classes, in_chans, make_layer(norm)(8)),
                         nn.LayerNorm(num_classes))


def deaf(num_classes, in_chans, norm):
    return net(num_classes, in_chans, nn.Identity() if norm == "none" else nn.BatchNorm2d(8))


def loose(num_classes, in_chans, norm):
    followed = norm if norm in ("none", "batch") else "group:2"
    return net(num_classes, in_chans, make_layer(followed)(8))


NUMBER = 5


def never(num_classes, in_chans, norm):
    return net(num_classes, in_chans, nn.Identity())


def moved(num_classes, in_chans, norm):
    if norm == "none":
        return nn.Sequential(nn.Conv2d(in_chans, 8, 3), nn.Flatten(), nn.LazyLinear(num_classes))
    return nn.Sequential(*[nn.Identity()] * 5, build(num_classes, in_chans, norm))


def dropped(num_classes, in_chans, norm):
    layer = nn.Dropout(0.1) if norm == "none" else make_layer(norm)(8)
    return net(num_classes, in_chans, layer)


def partly(num_classes, in_chans, norm):
    layer = make_layer(norm)(8) if norm in ("none", "batch") else nn.Identity()
    return net(num_classes, in_chans, layer)


def halved(width):
    return width // None


class EvalOnly(nn.Module):
    def __init__(self, num_classes, in_chans, norm):
        super().__init__()
        self.body = build(num_classes, in_chans, norm)

    def forward(self, x):
        return self.body(x) if self.training else x / None


def frozen(num_classes, in_chans, norm):
    return build(num_classes, in_chans, norm).requires_grad_(False)


def raises(num_classes, norm):
    return build(halved(num_classes), 1, norm)


def leaves(num_classes, norm):
    raise SystemExit(3)


class Broken(nn.Module):
    def __init__(self, num_classes, norm):
        super().__init__()
        self.norm = make_layer(norm)(1)

    def forward(self, x):
        x = self.norm(x)
        return x.no_such_thing


def one_channel(num_classes, norm):
    return net(num_classes, 1, make_layer(norm)(8))


def ten_classes(in_chans, norm):
    return net(10, in_chans, make_layer(norm)(8))


class Pair(Broken):
    def forward(self, x):
        return self.norm(x), x


def number(num_classes, norm):
    return 7


def wants_more(num_classes, norm, width, *, depth):
    return None


class Foreign(nn.Module):
    "A norm of another library, as its name says."


class BatchNormAct(Foreign):
    def forward(self, x):
        return x


def foreign(num_classes, in_chans, norm):
    return net(num_classes, in_chans, BatchNormAct() if norm == "none" else make_layer(norm)(8))
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with my/models.py, which is the current one; imports are forgotten afterwards."""
    (tmp_path / "my").mkdir()
    (tmp_path / "my/models.py").write_text(MODELS)
    (tmp_path / "my/__init__.py").touch()
    (tmp_path / "mind.py").touch()
    before = set(sys.modules)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for name in set(sys.modules) - before:
        if getattr(sys.modules[name], "__file__", None) and name.partition(".")[0] in (
            "my",
            "other",
            "late",
        ):
            del sys.modules[name]


def built(spec: str, norm: str = "batch", **more) -> nn.Module:
    shape = {"num_classes": 5, "in_chans": 1, "image_size": 8} | more
    return load_factory(f"my.models:{spec}").build(norm=norm, **shape)


def refused(spec: str, norm: str = "batch", **more) -> str:
    with pytest.raises(UsageError) as caught:
        built(spec, norm, **more)
    return str(caught.value)


def line_of(text: str) -> int:
    return next(i for i, line in enumerate(MODELS.splitlines(), 1) if text in line)


@pytest.mark.parametrize(
    "spec", ["build", "by_layer", "open_ended", "sized", "lazy", "Models.Small"]
)
@pytest.mark.parametrize("norm", ["batch", "none", "layer"])
@pytest.mark.usefixtures("folder")
def test_a_function_is_given_what_its_signature_asks_for(spec, norm):
    model = built(spec, norm)
    assert model(torch.zeros(3, 1, 8, 8)).shape == (3, 5)
    assert len(norm_places(model)) == (norm != "none")


@pytest.mark.parametrize("norm", ["group:4", "ghost:2", "noisy-batch", "noisy-none", "frozen"])
@pytest.mark.usefixtures("folder")
def test_every_norm_of_ours_passes(norm):
    assert type(built("build", norm)[1]) is type(norm_layer(norm)(8))


@pytest.mark.usefixtures("folder")
def test_trying_it_out_moves_no_random_state_and_no_weight():
    factory = load_factory("my.models:build")
    shape = {"num_classes": 5, "in_chans": 1, "norm": "none"}
    torch.manual_seed(3)
    first, after = factory.build(**shape).state_dict(), torch.rand(1)
    torch.manual_seed(3)
    second, after_second = factory.build(**shape).state_dict(), torch.rand(1)
    torch.manual_seed(3)
    by_hand = factory.function(5, 1, "none").state_dict()
    assert first.keys() == by_hand.keys()
    assert all(
        torch.equal(first[n], by_hand[n]) and torch.equal(second[n], first[n]) for n in by_hand
    )
    assert after == after_second == torch.rand(1)


@pytest.mark.usefixtures("folder")
def test_lazy_layers_draw_their_weights_as_they_are_built():
    factory = load_factory("my.models:lazy")
    weights = []
    for _ in range(2):
        torch.manual_seed(1)
        model = factory.build(num_classes=5, in_chans=1, norm="batch", image_size=8)
        assert model.training
        torch.manual_seed(2)
        model(torch.zeros(2, 1, 8, 8))
        weights.append(model[0].weight)
    assert torch.equal(*weights)
    assert model[1].num_batches_tracked == 1


@pytest.mark.usefixtures("folder")
def test_a_network_without_a_norm_is_told_what_to_change():
    assert refused("no_norm") == (
        f"got my.models:no_norm (./my/models.py, line {line_of('def no_norm')}), whose signature "
        "no_norm(num_classes=10) takes no norm; wanted a network that can be built with any norm "
        "and with none. Give it one:\n"
        "    from spiritlevel.nn import norm_layer\n"
        "    def build(num_classes, in_chans, norm):\n"
        "        ... norm_layer(norm)(64) ...  # where nn.BatchNorm2d(64) stood"
    )


@pytest.mark.parametrize(
    ("spec", "norm", "told"),
    [
        ("stuck", "none", "1 is a LayerNorm though norm='none' was asked"),
        ("foreign", "none", "1 is a BatchNormAct though norm='none' was asked; wanted a norm that"),
        ("deaf", "group:4", "1 is a BatchNorm2d though norm='group:4' was asked"),
        ("deaf", "ghost:2", "1 is a BatchNorm2d though norm='ghost:2' was asked"),
        ("loose", "layer", "1 is a GroupNorm of 2 groups though norm='layer' was asked"),
        ("loose", "group:4", "1 is a GroupNorm of 2 groups though norm='group:4' was asked"),
        ("never", "batch", "no layer normalises by batch though norm='batch' was asked"),
        ("moved", "none", "5.1 is a BatchNorm2d with norm='batch', and with norm='none' there is"),
        ("dropped", "none", "1 is a Dropout though norm='none' was asked; wanted an nn.Identity"),
        ("partly", "layer", "1 is an Identity though norm='layer' was asked; wanted a norm where"),
    ],
)
@pytest.mark.usefixtures("folder")
def test_a_norm_that_does_not_follow_is_named(spec, norm, told):
    message = refused(spec, norm)
    assert f"my.models:{spec} (./my/models.py, line {line_of(f'def {spec}(')}): {told}" in message
    assert "Make it by spiritlevel.nn.norm_layer(norm)(num_features)" in message


@pytest.mark.parametrize(
    ("spec", "norm", "told"),
    [
        (
            "raises",
            "batch",
            "got TypeError: unsupported operand type(s) for //: 'int' and 'NoneType' from "
            "my.models:raises (./my/models.py, line {def raises}), at ./my/models.py, "
            "line {// None}, called as raises(num_classes=5, norm='batch'); wanted a network",
        ),
        ("leaves", "batch", "got SystemExit: 3 from my.models:leaves"),
        (
            "Broken",
            "none",
            "got AttributeError: 'Tensor' object has no attribute 'no_such_thing' from the network "
            "of my.models:Broken (./my/models.py, line {class Broken}), at ./my/models.py, line "
            "{return x.no_such_thing}, in a trial pass (training) over images (4, 1, 8, 8) with "
            "norm='none'; wanted logits (4, 5). Put that right and run again",
        ),
        ("EvalOnly", "batch", "in a trial pass (eval) over images (4, 1, 8, 8)"),
        ("frozen", "batch", "got logits that depend on no weight that learns from the network of"),
        ("Pair", "batch", "got a tuple in training from the network of my.models:Pair"),
        (
            "ten_classes",
            "batch",
            "wanted logits (4, 5), images by classes. It does not take num_classes: let it.",
        ),
        ("number", "batch", "got an int from my.models:number"),
        ("wants_more", "batch", "wants width, depth; a study gives, by name: num_classes,"),
    ],
)
@pytest.mark.usefixtures("folder")
def test_a_fault_in_the_users_code_is_told_as_theirs(spec, norm, told):
    for text in ("def raises", "// None", "class Broken", "return x.no_such_thing"):
        told = told.replace("{" + text + "}", str(line_of(text)))
    assert told in refused(spec, norm)


@pytest.mark.usefixtures("folder")
def test_channels_that_the_network_cannot_take():
    message = refused("one_channel", in_chans=3)
    assert "over images (4, 3, 8, 8)" in message
    assert "It does not take in_chans or image_size: let it. Images of the size" in message
    assert "asked for by --image-size. Put that right" in message


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ("my.models:bild", "./my/models.py has no bild; wanted a function there that builds a "),
        ("my.models:bild", "network. Did you mean build?"),
        ("my.models:Models.small", " builds a network. Did you mean Small?"),
        ("my.modls:build", "there is no module my.modls in {folder} or among what is installed"),
        ("my.modls:build", "or mend the name. Did you mean my.models?"),
        ("mine:build", "or mend the name. Did you mean mind?"),
        ("my/models.py:build", "wanted pkg.module:factory, here my.models:build"),
        ("my.models", "wanted pkg.module:factory, as my.models:build"),
        (".models:build", "wanted pkg.module:factory"),
        ("my.models:", "wanted pkg.module:factory"),
        ("my.models:build:x", "wanted pkg.module:factory"),
        ("__main__:bild", "a function of a notebook or script that this is not; wanted it itself"),
        ("math:sin", "got model=<built-in function sin>, which is not written in Python"),
        ("my.models:MODELS", "has no MODELS"),
        ("my.models:torch.pi", "got model my.models:torch.pi, which is a float; wanted a function"),
    ],
)
def test_a_name_that_leads_nowhere(folder, spec, told):
    with pytest.raises(UsageError) as caught:
        load_factory(spec)
    assert told.format(folder=folder) in str(caught.value)


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("import no_such_package", "ModuleNotFoundError: No module named 'no_such_package'"),
        ("x = 1\n1 / 0", "ZeroDivisionError: division by zero"),
        ("x = 1\ndef build(:", "SyntaxError"),
        ("import sys\nsys.exit('usage')", "SystemExit: usage"),
    ],
)
def test_a_module_that_does_not_import(folder, source, told):
    (folder / "other.py").write_text(source)
    with pytest.raises(UsageError) as caught:
        load_factory("other:build")
    line = len(source.splitlines())
    assert f"got {told}" in str(caught.value)
    assert (
        f"from the module of model other:build, at ./other.py, line {line}, as it is imported"
        in str(caught.value)
    )


def test_a_script_that_starts_the_study_as_it_is_imported(folder):
    (folder / "other.py").write_text(
        "from spiritlevel.study.factory import load_factory\n"
        "def build(norm): ...\n"
        "load_factory('other:build')\n"
    )
    with pytest.raises(UsageError, match='under: if __name__ == "__main__":'):
        load_factory("other:build")


def test_it_says_whose_code_it_runs(folder, monkeypatch, tmp_path_factory):
    line = line_of("def build")
    factory = load_factory("my.models:build")
    assert factory.told() == (
        f"runs your code: build in ./my/models.py, line {line} (my.models:build)"
    )
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    assert f"build in {folder}/my/models.py, line {line}" in factory.told()


def outer():
    def inner(num_classes, in_chans, norm):
        return nn.Sequential(norm_layer(norm)(in_chans), nn.Flatten(), nn.LazyLinear(num_classes))

    return inner


def shaped(num_classes, in_chans, norm, width=8, act=nn.ReLU):
    return nn.Sequential(
        nn.Conv2d(in_chans, width, 3),
        norm_layer(norm)(width),
        act(),
        nn.Flatten(),
        nn.LazyLinear(num_classes),
    )


BUILT: list[str] = []


def counted(num_classes, in_chans, norm):
    BUILT.append(norm)
    return shaped(num_classes, in_chans, norm)


class Callable:
    def __call__(self, num_classes, in_chans, norm):
        return shaped(num_classes, in_chans, norm)


@pytest.mark.parametrize(
    ("model", "name"),
    [
        (shaped, "shaped"),
        (outer(), "outer.inner"),
        (partial(shaped, width=4, act=nn.Tanh), "shaped(width=4, act=a type)"),
        (Callable(), "Callable"),
    ],
)
def test_a_function_in_hand(model, name):
    factory = as_factory(model)
    assert as_factory(factory) is factory
    assert factory.spec == f"{__name__}:{name}"
    assert factory.file == os.path.abspath(__file__)
    assert name.partition("(")[0] in factory.told()
    built = factory.build(num_classes=5, in_chans=1, norm="none", image_size=8)
    assert built(torch.zeros(2, 1, 8, 8)).shape == (2, 5)


@pytest.mark.parametrize(
    ("model", "told"),
    [
        (lambda num_classes, norm: None, "got a lambda as the model; wanted a function with a"),
        (nn.Linear(2, 3), "got model=Linear(...), a network that is built already"),
        (7, "got model=7; wanted a function that builds a network"),
        (print, "got model=<built-in function print>, which is not written in Python"),
    ],
)
def test_what_is_no_factory(model, told):
    with pytest.raises(UsageError) as caught:
        as_factory(model)
    assert told in str(caught.value)


def test_pickled_it_is_imported_anew_from_the_folder_it_was_asked_from(folder):
    packed = pickle.dumps(load_factory("my.models:build"))
    code = f"""
        import pickle, sys
        factory = pickle.loads({packed!r})
        assert sys.path[0] == {str(folder)!r}, sys.path
        print(type(factory.build(num_classes=5, in_chans=1, norm="batch")[1]).__name__)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], cwd="/", capture_output=True, text=True
    )
    assert done.stdout == "BatchNorm2d\n", done.stderr


def test_what_was_tried_is_not_tried_again_where_it_is_sent():
    """A worker gets it with each of its runs."""
    here = as_factory(counted)
    shape = {"num_classes": 5, "in_chans": 1, "image_size": 8}
    BUILT.clear()
    here.build(norm="none", **shape)
    assert BUILT == ["none", "batch", "none"], "the twins, then the network itself"
    there = pickle.loads(pickle.dumps(here))  # noqa: S301
    BUILT.clear()
    there.build(norm="none", **shape)
    assert BUILT == ["none"]


def test_a_function_in_hand_is_imported_by_its_module_where_that_has_it(folder, monkeypatch):
    monkeypatch.syspath_prepend(folder)
    from my import models  # type: ignore[import-not-found]

    factory = as_factory(models.build)
    assert (factory.spec, factory.folder) == ("my.models:build", str(folder))
    assert as_factory(models.Models.Small).folder == str(folder)
    assert as_factory(partial(models.build, norm="batch")).folder is None


SCRIPT = """\
import joblib
from torch import nn
from spiritlevel.nn import norm_layer
from spiritlevel.study.factory import as_factory


class Net(nn.Module):
    def __init__(self, num_classes, in_chans, norm):
        super().__init__()
        self.norm = norm_layer(norm)(in_chans)
        self.head = nn.Linear(in_chans, num_classes)

    def forward(self, x):
        return self.head(self.norm(x).mean((2, 3)))


def build(num_classes, in_chans, norm):
    return Net(num_classes, in_chans, norm)


def work(factory, norm):
    model = factory.build(num_classes=5, in_chans=2, norm=norm)
    return type(model.norm).__name__


for factory in as_factory(build), as_factory("__main__:build"):
    print(factory.told())
    jobs = (joblib.delayed(work)(factory, norm) for norm in ("batch", "none", "group:2"))
    print(*joblib.Parallel(n_jobs=2)(jobs))
"""


def test_a_function_of_the_script_itself_travels_to_workers(tmp_path):
    """Defined in __main__, as in a notebook, it can be imported from nowhere."""
    (tmp_path / "script.py").write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert (
        done.stdout.splitlines()
        == [
            "runs your code: build in ./script.py, line 17 (__main__:build)",
            "BatchNorm2d Identity GroupNorm",
        ]
        * 2
    ), done.stderr


def test_a_factory_is_what_it_says():
    assert isinstance(as_factory(shaped), Factory)
    assert as_factory(shaped) != as_factory(shaped), "each tries out its networks by itself"
