import pytest
from torch import nn

from spiritlevel.models import create_model
from spiritlevel.probe import weight_layers
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
