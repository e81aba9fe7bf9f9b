import pytest
import torch
from torch import nn
from torch.nn import functional as F

from spiritlevel.errors import UsageError
from spiritlevel.models import create_model, init_he_

FLAT = ["mlp", "residual_mlp", "linear_net"]
CONV = ["small_vgg", "small_resnet"]
NORMS = ["batch", "ghost:4", "frozen", "group:8", "layer", "none", "noisy-batch", "noisy-none"]


def make(name, norm="batch", **options):
    if name in FLAT:
        options = {"image_size": 8, "width": 16, **options}
    return create_model(name, 10, norm, in_chans=1, **options)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", FLAT + CONV)
def test_every_norm_trains_and_evaluates(name, norm):
    model, x = make(name, norm), torch.randn(8, 1, 8, 8)
    logits = model(x)
    assert logits.shape == (8, 10)
    F.cross_entropy(logits, torch.arange(8)).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert model.eval()(x[:1]).shape == (1, 10)


@pytest.mark.parametrize(
    ("name", "options", "weights"),
    [
        ("mlp", {"depth": 1}, 2),
        ("mlp", {"depth": 40}, 41),
        ("linear_net", {"depth": 25}, 26),
        ("residual_mlp", {"depth": 1}, 2),
        ("residual_mlp", {"depth": 40}, 41),
        ("small_vgg", {}, 7),
        ("small_vgg", {"convs_per_stage": 1}, 4),
        ("small_vgg", {"depth": 12}, 13),
        ("small_vgg", {"widths": (4, 8), "depth": 5}, 6),
        ("small_resnet", {}, 8 + 2),  # and two 1x1 shortcuts
        ("small_resnet", {"depth": 21}, 22 + 2),
        ("small_resnet", {"widths": (8,), "depth": 3}, 4),
    ],
)
def test_depth_counts_the_weights(name, options, weights):
    model = make(name, **options)
    layers = [m for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    assert len(layers) == weights
    assert all(layer.bias is not None for layer in layers)
    assert model(torch.randn(4, 1, 8, 8)).shape == (4, 10)


def test_what_is_left_over_goes_to_the_earlier_stages():
    assert [len(stage) for stage in make("small_vgg", depth=8).stages] == [3, 3, 2]
    assert [len(stage) for stage in make("small_resnet", depth=9).stages] == [2, 1, 1]


def test_vgg_halves_between_stages_and_resnet_in_them():
    for name in CONV:
        model, sides = make(name), []
        for stage in model.stages:
            stage.register_forward_hook(lambda _m, _x, output, s=sides: s.append(output.shape[2]))
        model(torch.randn(2, 1, 14, 14))
        assert sides == ([14, 7, 3] if name == "small_vgg" else [14, 7, 4])


@pytest.mark.parametrize(
    ("activation", "apply"),
    [("relu", F.relu), ("sigmoid", torch.sigmoid), ("tanh", torch.tanh), ("none", lambda x: x)],
)
def test_mlp_is_linear_norm_activation(activation, apply):
    model = make("mlp", depth=2, activation=activation)
    x = torch.randn(6, 1, 8, 8)
    features = x.flatten(1)
    for layer in model.hidden:
        linear = F.linear(features, layer.linear.weight, layer.linear.bias)
        features = apply(F.batch_norm(linear, None, None, training=True))
    expected = F.linear(features, model.classifier.weight, model.classifier.bias)
    torch.testing.assert_close(model(x), expected)


def test_residual_mlp_adds_linear_of_activation_of_norm():
    model = make("residual_mlp", depth=3)
    x = torch.randn(6, 1, 8, 8)
    features = F.linear(x.flatten(1), model.linear.weight, model.linear.bias)
    for block in model.blocks:
        normed = F.relu(F.batch_norm(features, None, None, training=True))
        features = features + F.linear(normed, block.linear.weight, block.linear.bias)
    torch.testing.assert_close(model(x), model.classifier(features))


def test_linear_net_without_norm_is_affine():
    model = make("linear_net", "none", depth=5)
    a, b = torch.randn(2, 3, 1, 8, 8)
    torch.testing.assert_close(model(0.3 * a + 0.7 * b), 0.3 * model(a) + 0.7 * model(b))


@pytest.mark.parametrize("name", FLAT + CONV)
def test_a_seed_draws_the_same_weights_whatever_the_norm(name):
    def weights(norm):
        torch.manual_seed(0)
        model = init_he_(make(name, norm))
        return [m.weight for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d)]

    reference = weights("batch")
    for norm in ("none", "group:8", "noisy-batch"):
        assert all(map(torch.equal, reference, weights(norm)))


@pytest.mark.parametrize(
    ("name", "options", "text"),
    [
        (
            "mlp",
            {"activation": "gelu"},
            "got activation 'gelu'; wanted one of: relu, sigmoid, tanh",
        ),
        ("mlp", {"depth": 0}, "got depth=0; wanted 1 or more"),
        ("residual_mlp", {"width": 0}, "got width=0; wanted 1 or more"),
        ("small_resnet", {"depth": 8}, "got depth=8; wanted an odd number"),
        ("small_resnet", {"depth": 5}, "2 convolutions or blocks into stages of widths"),
        (
            "small_vgg",
            {"depth": 2},
            r"2 convolutions or blocks into stages of widths \(16, 32, 64\)",
        ),
        ("small_vgg", {"widths": ()}, "wanted at least one each"),
    ],
)
def test_options_that_cannot_be(name, options, text):
    with pytest.raises(UsageError, match=text):
        make(name, **options)


def test_images_of_another_size():
    model = make("mlp")
    with pytest.raises(UsageError, match=r"got images of shape \(1, 4, 16\).*made for \(1, 8, 8\)"):
        model(torch.randn(2, 1, 4, 16))
