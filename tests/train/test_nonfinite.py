import pytest
import torch
from torch import nn

from spiritlevel.train.nonfinite import first_not_finite, parameter_not_finite


class Breaks(nn.Module):
    def forward(self, x):
        return x / 0


def net(*layers):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), *layers, nn.Linear(4, 2)).train()


def told(model, x=None):
    x = torch.randn(8, 4) if x is None else x
    return first_not_finite(model, lambda: model(x))


def test_a_sound_model_has_none():
    assert told(net()) is None


def test_the_first_layer_is_named_not_those_it_spoils():
    found = told(net(Breaks(), nn.ReLU()))
    assert found == "2 (Breaks), whose input is finite and whose output is not"


@pytest.mark.parametrize("name", ["weight", "bias", "running_var"])
def test_a_parameter_or_a_statistic_is_named(name):
    model = net().eval()
    getattr(model[1], name).data[2] = float("nan")
    assert told(model) == f"1 (BatchNorm1d), whose {name} is not finite"


def test_an_input_is_named():
    assert told(net(), torch.full((8, 4), float("inf"))) == "0 (Linear), whose input is not finite"


def test_the_model_is_left_as_it_was():
    model = net(Breaks())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    told(model)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert model.training
    assert not any(module._forward_hooks for module in model.modules())


def test_hooks_go_also_where_the_pass_raises():
    model = net()
    with pytest.raises(RuntimeError):
        told(model, torch.randn(8, 5))
    assert not any(module._forward_hooks for module in model.modules())


def test_a_gradient_is_named():
    model = net()
    model(torch.randn(8, 4)).sum().backward()
    assert parameter_not_finite(model, gradients=True) is None
    model[1].bias.grad[0] = float("inf")
    assert parameter_not_finite(model, gradients=True) == "1.bias"


def test_a_mask_of_infinities_is_sound():
    model = nn.Module()
    model.register_buffer("mask", torch.tensor([0.0, float("-inf")]))
    assert parameter_not_finite(model) is None
