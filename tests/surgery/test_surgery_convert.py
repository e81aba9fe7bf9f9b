"""Norm layers of any model are exchanged for others, and keep what both kinds have."""

from __future__ import annotations

import pytest
import torch
from surgery_models import ResNet, images, log_of, why_of
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

import spiritlevel as sl
from spiritlevel import nn as snn
from spiritlevel.errors import UsageError
from spiritlevel.nn import batch

CONVOLUTIONS = {1: nn.Linear, 2: nn.Conv2d, 3: nn.Conv3d}
SHAPES = {1: (6, 3), 2: (6, 3, 5, 5), 3: (6, 3, 4, 4, 4)}
CLASSES = {
    "batch": (snn.BatchNorm1d, snn.BatchNorm2d, snn.BatchNorm3d),
    "sync": (snn.SyncBatchNorm,) * 3,
    "ghost:2": (snn.GhostBatchNorm1d, snn.GhostBatchNorm2d, snn.GhostBatchNorm3d),
    "frozen": (snn.FrozenBatchNorm,) * 3,
    "group:2": (nn.GroupNorm,) * 3,
    "layer": (nn.LayerNorm, nn.GroupNorm, nn.GroupNorm),
    "instance": (None, nn.InstanceNorm2d, nn.InstanceNorm3d),
    "none": (nn.Identity,) * 3,
    "noisy-batch": (snn.NoisyBatchNorm1d, snn.NoisyBatchNorm2d, snn.NoisyBatchNorm3d),
    "noisy-none": (snn.MomentNoise,) * 3,
}


def network(dim, norm="batch"):
    size = () if dim == 1 else (1,)
    layer = CONVOLUTIONS[dim]
    torch.manual_seed(0)
    model = nn.Sequential(
        layer(3, 8, *size), snn.norm_layer(norm, dim=dim)(8), nn.ReLU(), layer(8, 4, *size)
    )
    if isinstance(getattr(model[1], "weight", None), torch.Tensor):
        nn.init.normal_(model[1].weight, 1, 0.3)
        nn.init.normal_(model[1].bias)
    if getattr(model[1], "running_mean", None) is not None:
        model[1].running_mean.normal_()
        model[1].running_var.uniform_(0.5, 2)
        model[1].num_batches_tracked.fill_(7)
    return model


@pytest.mark.parametrize("dim", [1, 2, 3])
@pytest.mark.parametrize("spec", CLASSES)
def test_every_spec_in_every_dimension(spec, dim):
    model = network(dim)
    old = model[1]
    expected = CLASSES[spec][dim - 1]
    assert sl.convert(model, norm=spec) is model
    if expected is None:
        assert model[1] is old
        assert "one channel of one sample" in why_of(model, "1")
        return
    assert type(model[1]) is expected
    model(torch.randn(SHAPES[dim])).sum().backward()
    assert why_of(model, "1", "converted") == f"BatchNorm{dim}d -> {expected.__name__}"
    for name in ("weight", "bias"):
        now = getattr(model[1], name, None)
        assert now is None or torch.equal(now, getattr(old, name))
        assert not isinstance(now, nn.Parameter) or now is getattr(old, name)


@pytest.mark.parametrize("source", [spec for spec in CLASSES if "none" not in spec])
@pytest.mark.parametrize("dim", [1, 2, 3])
def test_every_kind_can_be_exchanged_for_a_batch_norm(source, dim):
    if CLASSES[source][dim - 1] is None:
        pytest.skip("there is no instance norm of (N, C)")
    model = network(dim, source)
    old = model[1]
    sl.convert(model, "batch:eps=0.5")
    assert type(model[1]) is CLASSES["batch"][dim - 1]
    assert model[1].eps == 0.5
    assert torch.equal(model[1].weight, old.weight)
    assert isinstance(model[1].weight, nn.Parameter)
    assert (model[1].weight is old.weight) == isinstance(old.weight, nn.Parameter)
    model(torch.randn(SHAPES[dim]))


@pytest.mark.parametrize("spec", ["batch", "ghost:2", "frozen", "noisy-batch"])
def test_running_statistics_go_over_so_eval_gives_the_same(spec):
    model = network(2).eval()
    x = torch.randn(SHAPES[2])
    expected, keys, mean = model(x), list(model.state_dict()), model[1].running_mean
    sl.convert(model, spec)
    assert not model[1].training
    torch.testing.assert_close(model(x), expected)
    assert sorted(model.state_dict()) == sorted(keys)
    assert model[1].running_mean is mean
    assert int(model[1].num_batches_tracked) == 7


def test_an_optimizer_made_before_still_trains_the_weights():
    model = network(2)
    optimizer = torch.optim.SGD(model.parameters(), 1.0)
    sl.convert(model, "group:4")
    before = model[1].weight.clone()
    model(torch.randn(SHAPES[2])).square().sum().backward()
    optimizer.step()
    assert not torch.equal(model[1].weight, before)


def test_frozen_parameters_stay_frozen():
    model = network(2)
    model[1].bias.requires_grad = False
    sl.convert(model, "group:4")
    assert model[1].weight.requires_grad
    assert not model[1].bias.requires_grad


def test_eps_and_momentum_stay_unless_they_are_named():
    model = nn.Sequential(nn.BatchNorm2d(4, eps=1e-3, momentum=0.01))
    sl.convert(model, "ghost:2")
    assert (model[0].eps, model[0].momentum) == (1e-3, 0.01)
    sl.convert(model, "batch:momentum=none")
    assert (model[0].eps, model[0].momentum) == (1e-3, None)
    sl.convert(model, lambda features: nn.BatchNorm2d(features, eps=0.1))
    assert (model[0].eps, model[0].momentum) == (0.1, 0.1)


def test_device_and_dtype_stay():
    model = network(2).double()
    sl.convert(model, nn.BatchNorm2d)
    assert model[1].running_var.dtype is torch.float64
    model = nn.Sequential(nn.BatchNorm2d(3, affine=False, device="meta"))
    sl.convert(model, "batch")
    assert model[0].running_var.device.type == "meta"


def test_a_layer_that_is_shared_stays_shared():
    model = network(2)
    model.append(nn.Conv2d(4, 8, 1)).append(model[1])
    sl.convert(model, "group:4")
    assert type(model[1]) is nn.GroupNorm
    assert model[1] is model[5]


def test_whole_models():
    model = ResNet()
    sl.convert(model, "group:2")
    assert not any(isinstance(m, nn.BatchNorm2d) for m in model.modules())
    assert [action for action, *_ in log_of(model)] == ["converted"] * 6
    assert model(images().float()).shape == (4, 4)


def test_a_model_that_is_a_norm_itself():
    model = nn.BatchNorm2d(4)
    new = sl.convert(model, "ghost:2")
    assert type(new) is snn.GhostBatchNorm2d
    assert new.weight is model.weight
    assert log_of(new) == [("converted", "", "BatchNorm2d -> GhostBatchNorm2d")]


def test_what_has_no_counterpart_is_made_new():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.GroupNorm(2, 4, affine=False))
    sl.convert(model, "batch")
    assert torch.equal(model[1].weight, torch.ones(4))
    assert torch.equal(model[1].running_var, torch.ones(4))


class Mine(nn.BatchNorm2d):
    def forward(self, x):
        return F.relu(super().forward(x))


def fused(model):
    return sl.fuse(nn.Sequential(model[1], nn.ReLU()))


def hooked(model):
    model[1].register_forward_hook(lambda *_: None)
    return model[:2]


class Doubled(nn.Module):
    def forward(self, weight):
        return weight * 2


def parametrized(model):
    parametrize.register_parametrization(model[1], "weight", Doubled())
    return model


@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature")
@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda _: nn.Sequential(Mine(3)), "is a Mine with a forward that may do more"),
        (
            fused,
            "is fused with what follows it, which goes to batch, sync and frozen only; convert "
            "before you fuse",
        ),
        (hooked, "is hooked"),
        (parametrized, "is parametrized"),
        (lambda _: nn.Sequential(nn.LazyBatchNorm2d()), "is lazy; run the model once"),
        (lambda _: nn.Sequential(nn.GroupNorm(2, 4)), "is a GroupNorm that does not tell how many"),
        (lambda _: nn.Sequential(nn.LayerNorm(4)), "is a LayerNorm that does not tell how many"),
    ],
)
def test_what_is_left_and_why(make, why):
    model = make(network(2))
    before = dict(model.named_modules())
    sl.convert(model, "ghost:2")
    assert dict(model.named_modules()) == before
    (left,) = (entry for entry in model.spiritlevel_log if entry.action == "left")
    assert left.why.startswith(why)


def test_a_transformers_layer_norms_are_left():
    model = nn.TransformerEncoderLayer(8, 2, 8, batch_first=True)
    sl.convert(model, "batch")
    assert type(model.norm1) is nn.LayerNorm


def test_nothing_to_convert_is_said_and_the_log_grows():
    model = nn.Sequential(nn.Conv2d(3, 4, 1))
    sl.convert(model, "group:2")
    sl.fuse(model)
    assert list(map(str, model.spiritlevel_log)) == [
        "left: there is no norm layer to convert",
        "left: there is no batch norm that is not fused already",
    ]


def test_after_convert_comes_fuse():
    model = sl.fuse(sl.convert(network(2, "group:2"), "batch"))
    assert type(model[1]) is batch.BatchNormAct2d


@pytest.mark.parametrize(
    ("norm", "message"),
    [
        ("batchnorm", "got norm 'batchnorm': there is no norm"),
        (3, "it is neither a string nor a function"),
        (lambda _: "nothing", r"got a function that returns str for norm; wanted a function"),
    ],
)
def test_wrong_specs_change_nothing(norm, message):
    model = network(2)
    before = list(model)
    with pytest.raises(UsageError, match=message):
        sl.convert(model, norm)
    assert list(model) == before
    assert not hasattr(model, "spiritlevel_log")


def test_it_wants_a_module():
    with pytest.raises(UsageError, match=r"got list to convert; wanted a torch\.nn\.Module"):
        sl.convert([], "batch")


@pytest.mark.parametrize(
    "options",
    [
        {"affine": False},
        {"track_running_stats": False},
        {"bias": False},
        {"affine": False, "bias": False},
    ],
    ids=str,
)
def test_what_a_batch_norm_does_without_stays_away(options):
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, **options))
    model(torch.randn(4, 3, 9, 9))
    model.eval()
    x, keys = torch.randn(2, 3, 9, 9), list(model.state_dict())
    expected = model(x)
    sl.convert(model, "batch")
    assert type(model[1]) is snn.BatchNorm2d
    assert list(model.state_dict()) == keys
    torch.testing.assert_close(model(x), expected)
    fresh = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, **options))
    sl.convert(fresh, "renorm")
    gained = "has running statistics, mean 0 and variance 1 so far" in str(fresh.spiritlevel_log[0])
    assert gained is ("track_running_stats" in options)
    again = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, **options))
    sl.convert(again, "group:4")
    for name in ("weight", "bias"):
        assert (getattr(again[1], name) is None) is (getattr(model[1], name) is None)
    assert again(x).shape == expected.shape
