import copy
import math

import numpy as np
import pytest
import torch
from by_hand import cross_entropy, images, make
from torch import nn
from torch.nn import functional as F

from spiritlevel.probe import covariate_shift

SEED = 5


def shift_by_definition(model, x, y, lr, index):
    """Definition 2.1 to the letter: copy the network, let an optimizer step what comes before.

    Returns ||G - G'||, cos(G, G') and ||G - G'|| / ||G|| of the weight of layer `index`.
    """
    model = copy.deepcopy(model).train()
    layers = [*model.hidden] if hasattr(model, "hidden") else [s[0] for s in model.stages]
    layers.append(model.classifier)
    earlier = [p for layer in layers[:index] for p in layer.parameters()]
    optimizer = torch.optim.SGD(earlier, lr=lr)

    def gradient():
        model.zero_grad()
        torch.manual_seed(SEED)
        cross_entropy(model(x), y).backward()
        layer = layers[index]
        weight = layer if isinstance(layer, nn.Linear) else layer[0]
        return weight.weight.grad.numpy().ravel().copy()

    g = gradient()
    optimizer.step()
    moved = gradient()
    distance = math.sqrt(sum((g - moved) ** 2))
    size, moved_size = math.sqrt(sum(g**2)), math.sqrt(sum(moved**2))
    return distance, sum(g * moved) / (size * moved_size), distance / size


@pytest.mark.parametrize("lr", [0.01, 1.0])
@pytest.mark.parametrize("norm", ["none", "batch", "ghost:4", "layer", "noisy-batch", "noisy-none"])
@pytest.mark.parametrize("name", ["mlp", "small_vgg"])
def test_it_is_definition_2_1(name, norm, lr):
    model, (x, y) = make(name, norm), images()
    torch.manual_seed(SEED)
    got = covariate_shift(model, x, y, lr=lr)
    names = [n for n, m in model.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    assert list(got) == names[1:]
    for index, reading in enumerate(got.values(), 1):
        l2, cosine, relative = shift_by_definition(model, x, y, lr, index)
        assert reading.l2 == pytest.approx(l2, rel=1e-8)
        assert reading.cosine == pytest.approx(cosine, rel=1e-8)
        assert reading.relative == pytest.approx(relative, rel=1e-8)
        assert reading.l2 > 1e-6


@pytest.mark.parametrize("norm", ["batch", "noisy-none"])
@pytest.mark.parametrize("chosen", [[], [0], [1], [2, 0], [0, 1, 2]])
def test_of_some_layers_it_is_what_it_is_of_all(norm, chosen):
    """What comes before a layer that is read has stepped, read or not."""
    model, (x, y) = make("mlp", norm, depth=3), images()

    def read(**layers):
        torch.manual_seed(SEED)
        return covariate_shift(model, x, y, lr=0.3, **layers)

    everything = read()
    names = [list(everything)[i] for i in chosen]
    got = read(layers=names)
    assert got == {name: everything[name] for name in sorted(names, key=list(everything).index)}
    assert list(got) == sorted(names, key=list(everything).index)
    assert len({reading.l2 for reading in everything.values()}) == 3
    assert read(layers=["hidden.0.linear"]) == {}, "before the first nothing steps"


def test_a_layer_that_is_not_there():
    model, (x, y) = make("mlp", "batch"), images()
    with pytest.raises(KeyError, match="no_such_layer"):
        covariate_shift(model, x, y, lr=0.3, layers=["classifier", "no_such_layer"])


def test_dropout_falls_alike_before_and_after():
    net = nn.Sequential(nn.Linear(16, 8), nn.Dropout(), nn.Linear(8, 3)).double()
    x, y = images()
    (reading,) = covariate_shift(net, x.flatten(1), y, lr=0.0).values()
    assert reading.l2 == 0


@pytest.mark.parametrize("norm", ["none", "batch"])
def test_without_a_step_there_is_no_shift(norm):
    model, (x, y) = make("mlp", norm), images()
    for reading in covariate_shift(model, x, y, lr=0.0).values():
        assert reading.l2 == 0
        assert reading.relative == 0
        assert reading.cosine == pytest.approx(1, abs=1e-12)


def test_two_linear_layers_on_paper():
    """Two weights a, b on one input: logits (b a x, 0), so dL/db = (p - 1) a x in class 0."""
    a, b, x, lr = 0.5, 2.0, 3.0, 0.1
    net = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 2, bias=False)).double()
    with torch.no_grad():
        net[0].weight.fill_(a)
        net[1].weight.copy_(torch.tensor([[b], [0.0]]))

    def gradient_of_b(a):
        p = 1 / (1 + math.exp(-b * a * x))
        return np.array([(p - 1) * a * x, (1 - p) * a * x])

    p = 1 / (1 + math.exp(-b * a * x))
    g, moved = gradient_of_b(a), gradient_of_b(a - lr * (p - 1) * b * x)
    (reading,) = covariate_shift(
        net, torch.tensor([[x]]).double(), torch.tensor([0]), lr=lr
    ).values()
    assert reading.l2 == pytest.approx(np.linalg.norm(g - moved), rel=1e-12)
    assert reading.relative == pytest.approx(
        np.linalg.norm(g - moved) / np.linalg.norm(g), rel=1e-12
    )
    assert reading.cosine == pytest.approx(1, abs=1e-12)


def test_a_layer_without_gradient_has_no_direction():
    model, (x, y) = make("mlp", "none"), images()
    nn.init.zeros_(model.classifier.weight)
    reading = covariate_shift(model, x, y, lr=0.1)["hidden.1.linear"]
    assert reading.l2 == 0
    assert math.isnan(reading.cosine)
    assert math.isnan(reading.relative)


def test_a_single_layer_has_none_before_it():
    net, x = nn.Linear(4, 3), torch.randn(5, 4)
    assert covariate_shift(net, x, torch.arange(5) % 3, lr=0.1) == {}


def test_float32_is_read_in_float64():
    model, (x, y) = make("small_vgg", "batch").float(), images()
    got = covariate_shift(model, x.float(), y, lr=0.1)
    exact = covariate_shift(copy.deepcopy(model).double(), x.float().double(), y, lr=0.1)
    for layer, reading in got.items():
        assert reading.relative == pytest.approx(exact[layer].relative, rel=1e-3)


def test_what_is_measured_is_torchs_cross_entropy():
    """The twin's own loss, so that no test here rests on it unproven."""
    logits, y = torch.randn(6, 3, dtype=torch.float64), torch.arange(6) % 3
    torch.testing.assert_close(cross_entropy(logits, y), F.cross_entropy(logits, y))
