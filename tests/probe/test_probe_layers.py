import copy

import pytest
import torch
from by_hand import double, images, make
from torch import nn

from spiritlevel.models import create_model
from spiritlevel.nn import norm_layer
from spiritlevel.probe import norm_places, normalised_weights, weight_layers
from spiritlevel.probe.layers import parameter_groups


def names_of(model, groups):
    name_of = {id(p): name for name, p in model.named_parameters()}
    return {layer: [name_of[id(p)] for p in group] for layer, group in groups.items()}


def test_weight_layers_by_name_and_in_order():
    model = nn.Sequential(
        nn.BatchNorm2d(1),
        nn.Conv2d(1, 2, 3),
        nn.Sequential(nn.ReLU(), nn.Conv1d(2, 2, 1), nn.Conv3d(2, 2, 1)),
        nn.PReLU(),
        nn.Linear(2, 2),
    )
    layers = weight_layers(model)
    assert list(layers) == ["1", "2.1", "2.2", "4"]
    assert layers["2.2"] is model[2][2]
    assert weight_layers(nn.ReLU()) == {}


def test_a_layer_is_a_weight_and_the_norm_after_it():
    model = create_model("mlp", norm="batch", depth=2)
    assert names_of(model, parameter_groups(model)) == {
        f"hidden.{i}.linear": [
            f"hidden.{i}.{part}"
            for part in ("linear.weight", "linear.bias", "norm.weight", "norm.bias")
        ]
        for i in range(2)
    } | {"classifier": ["classifier.weight", "classifier.bias"]}


@pytest.mark.parametrize("norm", ["none", "batch", "group:2"])
@pytest.mark.parametrize(
    "name", ["mlp", "residual_mlp", "small_vgg", "small_resnet", "ghostnet_100"]
)
def test_each_parameter_is_in_one_group(name, norm):
    model = create_model(name, 10, norm)
    groups = parameter_groups(model)
    assert list(groups) == list(weight_layers(model))
    grouped = [id(p) for group in groups.values() for p in group]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters())
    for name, layer in weight_layers(model).items():
        assert groups[name][0] is layer.weight


def test_a_shared_weight_is_in_the_first_group_only():
    first, second = nn.Linear(3, 3, bias=False), nn.Linear(3, 3)
    second.weight = first.weight
    groups = parameter_groups(nn.Sequential(first, second))
    assert [list(map(id, group)) for group in groups.values()] == [
        [id(first.weight)],
        [id(second.bias)],
    ]


def test_norm_places_are_the_modules_that_normalise():
    specs = ["batch", "none", "ghost:2", "noisy-batch", "group:2", "layer", "instance"]
    model = nn.Sequential(
        *(norm_layer(spec)(4) for spec in specs), nn.Dropout(), nn.Conv2d(4, 4, 1)
    )
    model.append(nn.Sequential(nn.ReLU(), nn.LayerNorm(4)))
    assert norm_places(model) == ["0", "2", "3", "4", "5", "6", "9.1"]
    assert norm_places(create_model("mlp", norm="none")) == []


class ConvBatchNorm(nn.Sequential):
    """A block, whatever it is called."""


class MyRMSNorm(nn.Module):
    """Another library's."""


def test_a_norm_is_known_by_its_class_or_its_name_and_a_block_is_none():
    norm = nn.BatchNorm2d(4)
    norm.act = nn.ReLU()  # as some libraries fuse them
    model = nn.Sequential(ConvBatchNorm(nn.Conv2d(4, 4, 1), nn.Identity()), MyRMSNorm(), norm)
    assert norm_places(model) == ["1", "2"]


@pytest.mark.parametrize("norm", ["batch", "group:2", "layer", "ghost:2", "noisy-batch"])
def test_norm_places_are_the_same_whatever_norm_stands_there(norm):
    for name in ("mlp", "small_vgg", "small_resnet"):
        places = norm_places(create_model(name, 10, norm))
        assert places == norm_places(create_model(name, 10, "batch"))
        assert len(places) >= 3


class Net(nn.Module):
    """Every way in which a weight and a norm can meet; (N, 2, H, W) -> (N, 3)."""

    def __init__(self):
        super().__init__()
        self.direct, self.direct_norm = nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4)
        # A residual block whose norms come first: one is fed a sum, one a convolution's output.
        self.before, self.inner = nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, padding=1)
        self.between, self.branch = nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, padding=1)
        self.after_sum = nn.BatchNorm2d(4)
        self.left, self.right = nn.Conv2d(4, 2, 1), nn.Conv2d(4, 2, 1)
        self.of_both = nn.BatchNorm2d(4)
        self.shared, self.once = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.twice = nn.BatchNorm2d(4)
        self.gated, self.gated_norm = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.squeeze, self.excite = nn.Conv2d(4, 2, 1), nn.Conv2d(2, 4, 1)
        self.at_end, self.head = nn.BatchNorm1d(4), nn.Linear(4, 3)

    def forward(self, x):
        x = self.direct_norm(self.direct(x)).tanh()
        x = x + self.branch(self.between(self.inner(self.before(x).tanh())).tanh())
        x = self.after_sum(x).tanh()
        x = self.of_both(torch.cat([self.left(x), self.right(x)], 1)).tanh()
        x = self.twice(self.shared(self.once(self.shared(x)).tanh())).tanh()
        x = self.gated_norm(self.gated(x))
        x = x * self.excite(self.squeeze(x.mean((2, 3), keepdim=True)).tanh()).sigmoid()
        return self.head(self.at_end(x.mean((2, 3))))


WANTED = {
    "direct": "direct_norm",
    "inner": "between",
    "shared": "twice",
    "gated": "gated_norm",
}


def net():
    torch.manual_seed(0)
    return Net().double(), double(6, 2, 4, 4)


def test_a_weight_is_normalised_where_its_very_output_is_fed_to_a_norm():
    """Not behind a sum, a concatenation or a gate, nor where the norm comes before the weight."""
    assert normalised_weights(*net()) == WANTED


def insensitive(model, x):
    """By experiment: the weights that may be scaled without the logits noticing."""
    found = set()
    for name in weight_layers(model):
        logits = []
        for scale in (1, 3, 0.2):
            scaled = copy.deepcopy(model).train()
            for module in scaled.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eps = 1e-300
            with torch.no_grad():
                weight_layers(scaled)[name].weight.mul_(scale)
                logits.append(scaled(x))
        if all(torch.allclose(each, logits[0], rtol=1e-9) for each in logits):
            found.add(name)
    return found


def test_those_are_the_weights_whose_scale_does_not_matter():
    model, x = net()
    # Of a concatenation batch norm, channel by channel, forgets the scale too; others do not.
    assert insensitive(model, x) == {*WANTED, "left", "right"}
    for name in ("mlp", "small_vgg"):
        model, (x, _) = make(name, "batch"), images()
        assert set(normalised_weights(model, x)) == insensitive(model, x)
        assert len(normalised_weights(model, x)) == 2
    torch.manual_seed(0)
    model = create_model("small_resnet", 3, in_chans=1, widths=(3, 4), depth=5).double()
    assert set(normalised_weights(model, x)) == insensitive(model, x)
    assert "stages.1.0.shortcut.0" in normalised_weights(model, x)


def test_of_a_ghostnet_all_but_squeeze_excitation_head_and_classifier():
    model = create_model("ghostnet_050", 3, in_chans=1, stem="cifar")
    found = normalised_weights(model, torch.randn(2, 1, 16, 16))
    free = [name for name in weight_layers(model) if name not in found]
    assert free
    assert all(name.startswith(("conv_head", "classifier")) or ".se." in name for name in free)
    assert found["conv_stem"] == "bn1"


def test_without_norms_there_are_none():
    assert normalised_weights(make("small_vgg", "none"), images()[0]) == {}


def test_it_leaves_no_hook_and_no_trace_also_where_a_pass_fails():
    model, x = net()
    model.eval()
    before = copy.deepcopy(model.state_dict())
    normalised_weights(model, x)
    with pytest.raises(RuntimeError, match="channels"):
        normalised_weights(model, x[:, :1])
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert not any(m.training for m in model.modules())


class PreActivation(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.conv, self.end = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        x = self.stem(x)
        x = x + self.conv(self.norm(x).relu())  # the stem goes around the norm, too
        return self.head(self.end(x).relu().mean((2, 3)))


class InPlace(PreActivation):
    def forward(self, x):
        x = self.stem(x).tanh()
        y = self.conv(x)
        y += x  # the same tensor, but no longer the convolution's output
        return self.head(self.end(y).relu().mean((2, 3)))


class SharedOnce(PreActivation):
    def forward(self, x):
        x = self.stem(x).tanh()
        x = self.end(self.conv(x)).relu()
        return self.head(self.conv(x).relu().mean((2, 3)))  # again, without a norm


class AlsoGivenOut(PreActivation):
    def forward(self, x):
        x = self.conv(self.stem(x).tanh())
        return {"logits": self.head(self.end(x).relu().mean((2, 3))), "features": [x]}


@pytest.mark.parametrize("kind", [PreActivation, InPlace, SharedOnce, AlsoGivenOut])
def test_a_weight_whose_output_also_goes_elsewhere_is_not_normalised(kind):
    torch.manual_seed(0)
    assert normalised_weights(kind().double(), double(6, 2, 4, 4)) == {}


def test_of_our_residual_mlp_neither_the_first_nor_the_last():
    torch.manual_seed(0)
    model = create_model("residual_mlp", 3, in_chans=1, image_size=4, depth=3, width=6).double()
    x = double(9, 1, 4, 4)
    assert set(normalised_weights(model, x)) == insensitive(model, x)


class ReadsTwice(nn.BatchNorm2d):
    """As a norm written in plain torch does."""

    def forward(self, x):
        return (x - x.mean((0, 2, 3), keepdim=True)) / x.std((0, 2, 3), keepdim=True)


def test_a_norm_may_read_its_input_more_than_once_and_the_weights_may_be_frozen():
    model = nn.Sequential(nn.Conv2d(1, 3, 1), ReadsTwice(3), nn.Flatten(), nn.Linear(12, 2))
    model.requires_grad_(False)
    x = torch.randn(5, 1, 2, 2)
    assert normalised_weights(model, x) == {"0": "1"}
    assert not x.requires_grad
    with torch.no_grad():
        assert normalised_weights(model, x) == {"0": "1"}
