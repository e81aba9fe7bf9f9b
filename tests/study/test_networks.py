"""How a study's networks are built: the same weights whatever the norm, and the user's own."""

from __future__ import annotations

import math
import sys

import pytest
import torch
from tiny import CLASSES, tiny
from torch import nn

from spiritlevel.data import prepare
from spiritlevel.errors import UsageError
from spiritlevel.models import create_model
from spiritlevel.nn import norm_layer
from spiritlevel.probe import norm_places, weight_layers
from spiritlevel.study import networks
from spiritlevel.study.factory import as_factory
from spiritlevel.study.networks import (
    NETWORKS,
    build,
    init_title,
    initialise,
    network,
    places,
    use_factory,
)
from spiritlevel.study.tasks.common import feed

NORMS = ["none", "batch", "group:8", "noisy-batch", "ghost:16"]
SMALL = ["sigmoid_mlp", "mlp", "residual_mlp", "small_vgg", "small_resnet"]
KIND = {
    "none": nn.Identity,
    "batch": nn.modules.batchnorm._BatchNorm,
    "group:8": nn.GroupNorm,
    "noisy-batch": nn.modules.batchnorm._BatchNorm,
    "ghost:16": nn.modules.batchnorm._BatchNorm,
}

# GhostNet has stages of 12 channels; once is enough to be told of.
pytestmark = pytest.mark.filterwarnings("ignore:norm 'group.8'. 8 groups do not divide")


@pytest.fixture(autouse=True)
def _no_factories(monkeypatch):
    """What a test hands to `use_factory` is forgotten after it."""
    monkeypatch.setattr(networks, "_factories", {})


def settings(name: str, norm: str = "batch", init: str | None = None, **more):
    init = network(name).inits[0] if init is None else init
    return {"network": name, "norm": norm, "init": init, **more}


def data(name: str = "mlp", channels: int = 1, size: int | None = None):
    wanted = network(name).least_size if size is None else size
    return feed(tiny(channels), {"network": name, "size": wanted})


def weights(model: nn.Module) -> list[torch.Tensor]:
    return [layer.weight.detach() for layer in weight_layers(model).values()]


def made(name: str, norm: str, seed: int = 3, **more) -> nn.Module:
    torch.manual_seed(seed)
    return build(settings(name, norm, **more), data(name))


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", NETWORKS)
def test_each_takes_images_of_its_least_size_with_any_norm(name, norm):
    images = data(name, channels=3)
    torch.manual_seed(0)
    model = build(settings(name, norm), images)
    assert model(images.train_x[:16]).shape == (16, CLASSES)
    modules = dict(model.named_modules())
    at = places(settings(name, norm), images)
    assert at == places(settings(name, "batch"), images) != []
    assert all(isinstance(modules[place], KIND[norm]) for place in at)
    assert norm_places(model) == ([] if norm == "none" else at)
    assert not norm.startswith(("ghost", "noisy")) or type(modules[at[0]]).__module__.startswith(
        "spiritlevel"
    )


@pytest.mark.parametrize("name", NETWORKS)
def test_the_same_seed_draws_the_same_weights_whatever_the_norm(name):
    drawn = {norm: weights(made(name, norm)) for norm in NORMS}
    if name == "ghostnet_050":  # whose convolutions have biases only without a norm
        del drawn["none"]
    for found in drawn.values():
        assert all(torch.equal(a, b) for a, b in zip(found, drawn["batch"], strict=True))
    other = weights(made(name, "batch", seed=4))
    assert not torch.equal(other[0], drawn["batch"][0])


@pytest.mark.parametrize("name", ["mlp", "small_vgg"])
def test_the_places_of_norms_are_found_without_moving_the_random_state(name):
    images = data(name)
    torch.manual_seed(7)
    before = torch.get_rng_state()
    found = places(settings(name, "none"), images)
    assert torch.equal(torch.get_rng_state(), before)
    assert found == norm_places(made(name, "batch"))
    assert not torch.equal(torch.get_rng_state(), before), "building itself draws"


@pytest.mark.parametrize("name", ["small_vgg", "small_resnet"])
def test_convolutions_lie_channels_last(name):
    for layer in weight_layers(made(name, "batch")).values():
        if isinstance(layer, nn.Conv2d) and layer.weight.shape[1] > 1:
            assert layer.weight.is_contiguous(memory_format=torch.channels_last)


def test_what_a_cell_sets_goes_before_what_the_network_is():
    images = data("mlp", size=8)

    def widths(name, **more):
        return [
            layer.weight.shape[0] for layer in weight_layers(made(name, "batch", **more)).values()
        ]

    assert widths("sigmoid_mlp") == [100, 100, 100, CLASSES]
    assert widths("sigmoid_mlp", depth=1, width=9) == [9, CLASSES]
    assert widths("mlp", depth=2, width=7) == [7, 7, CLASSES]
    assert len(widths("small_vgg", depth=5)) == 6
    model = build(settings("mlp", activation="tanh", depth=2, width=4), images)
    assert isinstance(model.hidden[0].act, nn.Tanh)
    assert isinstance(made("sigmoid_mlp", "batch").hidden[0].act, nn.Sigmoid)
    assert build(settings("mlp", "batch", depth=2, width=7), images, norm="none").hidden[
        0
    ].norm._get_name() == ("Identity")


def test_pixels_are_standardised_but_for_the_network_of_the_paper():
    plain, standard = data("sigmoid_mlp").train_x[:], data("mlp").train_x[:]
    assert 0 <= plain.min() < plain.max() <= 1
    assert standard.mean().item() == pytest.approx(0, abs=1e-5)
    assert standard.std().item() == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_seed_starts_every_arm_from_the_same_weights(name):
    """Pairs of runs differ by the norm alone; and where there is none, a bias does its shift."""
    arms = [weights(made(name, norm, init="default")) for norm in ("batch", "none", "layer")]
    for arm in arms[1:]:
        assert all(torch.equal(a, b) for a, b in zip(arms[0], arm, strict=True))


def test_nothing_but_norms_makes_noise():
    """Dropout would be the same at every batch size, and regularise where the norm is judged."""
    for name in NETWORKS:
        model = made(name, "batch")
        assert not any(m.p for m in model.modules() if isinstance(m, nn.Dropout))


def test_a_network_there_is_not():
    with pytest.raises(UsageError) as caught:
        build(settings("mlp") | {"network": "vgg"}, data())
    assert str(caught.value) == (
        "got network 'vgg'; wanted one of sigmoid_mlp, mlp, residual_mlp, small_vgg, small_resnet, "
        "ghostnet_050, or pkg.module:factory"
    )


@pytest.mark.parametrize(
    ("init", "std"), [("he", 1.0), ("he*2", 2.0), ("he*0.5", 0.5), ("normal*0.01", None)]
)
def test_initial_weights_have_the_size_they_are_asked_for(init, std):
    torch.manual_seed(0)
    model = create_model("mlp", num_classes=10, in_chans=1, image_size=32, depth=2, width=400)
    nn.init.ones_(model.hidden[1].linear.bias)
    linear = initialise(model, init).hidden[1].linear
    wanted = 0.01 if std is None else std * math.sqrt(2 / 400)
    assert linear.weight.std().item() == pytest.approx(wanted, rel=0.02)
    assert linear.bias.abs().max() == 0


def test_xavier_is_uniform_by_fan_in_and_out():
    torch.manual_seed(0)
    model = create_model("mlp", num_classes=10, in_chans=1, image_size=32, depth=2, width=400)
    weight = initialise(model, "xavier").hidden[0].linear.weight
    bound = math.sqrt(6 / (1024 + 400))
    assert bound * 0.999 < weight.abs().max() <= bound
    assert weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.01)


def test_torchs_own_weights_are_left_as_they_are():
    model = create_model("mlp", num_classes=3, in_chans=1, image_size=4, depth=2, width=5)
    before = [weight.clone() for weight in weights(model)]
    after = weights(initialise(model, "default"))
    assert all(torch.equal(a, b) for a, b in zip(after, before, strict=True))


@pytest.mark.parametrize("norm", ["none", "batch"])
def test_zeroed_branches_leave_each_block_its_shortcut(norm):
    model = made("small_resnet", norm, init="he+zero").eval()
    x = torch.randn(2, 16, 4, 4).relu()
    assert torch.allclose(model.stages[0][0](x), x)
    he = made("small_resnet", norm, init="he").eval()
    assert not torch.allclose(he.stages[0][0](x), x)
    first = (m.stages[0][0].conv1.weight for m in (model, he))
    assert torch.equal(*first), "the rest is He's"


@pytest.mark.parametrize(
    "init", ["zeros", "xavier*2", "he+one", "he*x", "he*", "normal", "normal*", ""]
)
def test_initialise_names_what_it_does_not_know(init):
    with pytest.raises(UsageError) as caught:
        initialise(nn.Linear(2, 2), init)
    assert str(caught.value) == (
        f"got init {init!r}; wanted default, xavier, he, he*NUMBER, he+zero or normal*NUMBER"
    )


class Mine(nn.Module):
    def __init__(self, num_classes, in_chans, norm):
        super().__init__()
        self.conv = nn.Conv2d(in_chans, 8, 3)
        self.norm = norm_layer(norm)(8)
        self.head = nn.Linear(8, num_classes)

    def forward(self, x):
        return self.head(self.norm(self.conv(x)).relu().mean((2, 3)))


def mine(num_classes, in_chans, norm):
    return Mine(num_classes, in_chans, norm)


@pytest.mark.parametrize("norm", NORMS)
def test_the_users_own_by_a_factory_in_hand(norm):
    factory = as_factory(mine)
    use_factory(factory)
    images = prepare(tiny(3), size=9)
    torch.manual_seed(0)
    model = build(settings(factory.spec, norm), images)
    assert isinstance(model, Mine)
    assert isinstance(model.norm, KIND[norm])
    assert model(images.train_x[:16]).shape == (16, CLASSES)
    assert places(settings(factory.spec, norm), images) == ["norm"]
    assert networks._factories[factory.spec] is factory, "not looked for by its name"
    torch.manual_seed(0)
    assert torch.equal(model.conv.weight, mine(CLASSES, 3, norm).conv.weight)
    assert network(factory.spec).standardise
    assert network(factory.spec).inits == ("default",)


MODULE = """\
from torch import nn
from spiritlevel.nn import norm_layer


def build(num_classes, in_chans, norm, image_size):
    return nn.Sequential(
        nn.Flatten(), nn.Linear(in_chans * image_size**2, 4), norm_layer(norm, dim=1)(4),
        nn.Linear(4, num_classes),
    )
"""


def test_the_users_own_by_name(tmp_path, monkeypatch):
    (tmp_path / "their_models.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    spec = "their_models:build"
    images = data("mlp", size=8)
    try:
        model = build(settings(spec, "layer", init="he"), images)
        assert isinstance(model[2], nn.LayerNorm)
        assert model[1].weight.shape == (4, 64)
        assert model[1].bias.abs().max() == 0, "initialised as the cell says"
        found = networks._factories[spec]
        again = build(settings(spec, "batch"), images)
        assert isinstance(again[2], nn.BatchNorm1d)
        assert networks._factories == {spec: found}, "found once"
        with pytest.raises(UsageError, match=r"their_models\.py has no bild"):
            build(settings("their_models:bild"), images)
    finally:
        sys.modules.pop("their_models", None)


@pytest.mark.parametrize(
    ("init", "told"),
    [
        ("he", "He"),
        ("he*2", "He × 2"),
        ("he*0.5", "He × 0.5"),
        ("he+zero", "He+zero"),
        ("xavier", "Xavier"),
        ("default", "torch's own"),
        ("normal*0.01", "normal × 0.01"),
    ],
)
def test_initial_weights_are_told_by_their_authors(init, told):
    assert init_title(init) == told


def test_every_initialisation_has_a_name():
    known = {init for one in NETWORKS.values() for init in one.inits}
    known |= {init for one in NETWORKS.values() for _, init in one.landscape}
    assert all(init_title(init) for init in known)
