import warnings

import pytest
import torch
from torch import nn

from spiritlevel.errors import UsageError
from spiritlevel.nn import (
    BatchNorm1d,
    BatchNorm2d,
    BatchNorm3d,
    BatchRenorm1d,
    BatchRenorm2d,
    BatchRenorm3d,
    FrozenBatchNorm,
    GhostBatchNorm1d,
    GhostBatchNorm2d,
    GhostBatchNorm3d,
    MomentNoise,
    NoisyBatchNorm1d,
    NoisyBatchNorm2d,
    NoisyBatchNorm3d,
    SyncBatchNorm,
    norm_layer,
    normalizes,
)

SHAPES = {1: (16, 24), 2: (16, 24, 3, 3), 3: (16, 24, 2, 2, 2)}
CLASSES = {
    "batch": (BatchNorm1d, BatchNorm2d, BatchNorm3d),
    "sync": (SyncBatchNorm, SyncBatchNorm, SyncBatchNorm),
    "ghost:4": (GhostBatchNorm1d, GhostBatchNorm2d, GhostBatchNorm3d),
    "renorm": (BatchRenorm1d, BatchRenorm2d, BatchRenorm3d),
    "frozen": (FrozenBatchNorm, FrozenBatchNorm, FrozenBatchNorm),
    "group:8": (nn.GroupNorm, nn.GroupNorm, nn.GroupNorm),
    "layer": (nn.LayerNorm, nn.GroupNorm, nn.GroupNorm),
    "instance": (None, nn.InstanceNorm2d, nn.InstanceNorm3d),
    "none": (nn.Identity, nn.Identity, nn.Identity),
    "noisy-batch": (NoisyBatchNorm1d, NoisyBatchNorm2d, NoisyBatchNorm3d),
    "noisy-none": (MomentNoise, MomentNoise, MomentNoise),
}


@pytest.mark.parametrize("dim", [1, 2, 3])
@pytest.mark.parametrize("spec", CLASSES)
def test_each_spec_is_its_class_and_runs(spec, dim):
    expected = CLASSES[spec][dim - 1]
    if expected is None:
        with pytest.raises(UsageError, match="'instance': one channel of one sample"):
            norm_layer(spec, dim=dim)
        return
    layer = norm_layer(spec, dim=dim)(24)
    assert type(layer) is expected
    x = torch.randn(SHAPES[dim])
    assert layer(x).shape == x.shape
    assert layer.eval()(x).shape == x.shape


@pytest.mark.parametrize(
    ("spec", "axes"),
    [("batch", (0, 2, 3)), ("layer", (1, 2, 3)), ("instance", (2, 3))],
)
def test_what_is_averaged_over(spec, axes):
    y = norm_layer(spec)(24)(torch.randn(16, 24, 3, 3) * 3 + 2)
    mean, var = y.mean(axes), y.var(axes, correction=0)
    torch.testing.assert_close(mean, torch.zeros_like(mean), rtol=0, atol=1e-5)
    torch.testing.assert_close(var, torch.ones_like(var), rtol=0, atol=1e-3)


def test_layer_of_features_and_learned_weights():
    y = norm_layer("layer", dim=1)(24)(torch.randn(5, 24) * 3 + 2)
    torch.testing.assert_close(y.mean(1), torch.zeros(5), rtol=0, atol=1e-5)
    for spec in ("batch", "sync", "ghost:4", "renorm", "group:8", "layer", "instance"):
        assert {name for name, _ in norm_layer(spec)(24).named_parameters()} == {"weight", "bias"}


@pytest.mark.parametrize(
    ("spec", "attributes"),
    [
        ("batch", {"momentum": 0.1, "eps": 1e-5}),
        ("batch:momentum=0.01,eps=1e-3", {"momentum": 0.01, "eps": 1e-3}),
        ("batch:momentum=none", {"momentum": None}),
        ("noisy-batch:eps=0.5", {"eps": 0.5}),
        ("sync", {"momentum": 0.1, "eps": 1e-5, "stands_for": BatchNorm2d}),
        ("sync:momentum=none,eps=1e-3", {"momentum": None, "eps": 1e-3}),
        ("ghost:16", {"group_size": 16, "momentum": 0.1}),
        ("ghost:4,momentum=1", {"group_size": 4, "momentum": 1.0}),
        ("ghost:eps=1,group_size=2", {"group_size": 2, "eps": 1.0}),
        ("renorm", {"r_max": 3.0, "d_max": 5.0, "warmup": 5000, "momentum": 0.1, "eps": 1e-5}),
        ("renorm:r_max=1,d_max=0,warmup=0", {"r_max": 1.0, "d_max": 0.0, "warmup": 0}),
        ("renorm:momentum=none,eps=0.1", {"momentum": None, "eps": 0.1}),
        ("group:6,eps=0.1", {"num_groups": 6, "eps": 0.1}),
        ("layer:eps=0.1", {"num_groups": 1, "eps": 0.1}),
        ("instance:eps=0.1", {"eps": 0.1, "affine": True}),
        ("frozen:eps=0.1", {"eps": 0.1}),
    ],
)
def test_options(spec, attributes):
    layer = norm_layer(spec)(24)
    assert {name: getattr(layer, name) for name in attributes} == attributes


@pytest.mark.parametrize(
    ("spec", "why"),
    [
        ("bacth", "there is no norm 'bacth'"),
        ("", "there is no norm ''"),
        ("Batch", "there is no norm 'Batch'"),
        ("batch:", "batch has no option ''; its options: momentum, eps"),
        ("sync:16", "sync has no option '16'; its options: momentum, eps"),
        ("batch:16", "batch has no option '16'"),
        ("none:eps=1", "none has no option 'eps'; its options: none"),
        ("group:8,momentum=1", "group has no option 'momentum'; its options: groups, eps"),
        ("batch:momentum", "momentum is '', not a number from 0 to 1, or none"),
        ("batch:momentum=2", "momentum is '2', not a number from 0 to 1, or none"),
        ("batch:momentum=nan", "momentum is 'nan'"),
        ("batch:eps=0", "eps is '0', not a number above 0"),
        ("batch:eps=inf", "eps is 'inf'"),
        ("batch:eps=1,eps=1", "eps is given twice"),
        ("ghost", "ghost needs a size, as in 'ghost:16'"),
        ("ghost:eps=1", "ghost needs a size, as in 'ghost:16'"),
        ("ghost:0", "group_size is '0', not a whole number above 0"),
        ("group:2.5", "groups is '2.5', not a whole number above 0"),
        ("group:-2", "groups is '-2', not a whole number above 0"),
        ("renorm:3", "renorm has no option '3'; its options: momentum, eps, r_max, d_max, warmup"),
        ("renorm:r_max=0.9", "r_max is '0.9', not a number of 1 or more"),
        ("renorm:r_max=inf", "r_max is 'inf', not a number of 1 or more"),
        ("renorm:d_max=-1", "d_max is '-1', not a number of 0 or more"),
        ("renorm:warmup=2.5", "warmup is '2.5', not a whole number of 0 or more"),
        (nn.BatchNorm2d(3), "it is neither a string nor a function"),
        (3, "it is neither a string nor a function"),
    ],
)
def test_what_cannot_be_read_is_repeated_with_what_can(spec, why):
    with pytest.raises(UsageError) as caught:
        norm_layer(spec)
    text = str(caught.value)
    assert text.startswith(f"got norm {spec!r}: {why}")
    for known in (
        "batch, sync, ghost:16, renorm, frozen",
        "noisy-none",
        "batch:momentum=0.01,eps=1e-3",
    ):
        assert known in text


def test_dim_is_one_two_or_three():
    with pytest.raises(UsageError, match=r"got dim=4; wanted 1 for \(N, C\)"):
        norm_layer("batch", dim=4)


def test_groups_that_do_not_divide_take_the_greatest_common_divisor_and_say_so_once():
    make = norm_layer("group:8")
    assert make(16).num_groups == 8
    with pytest.warns(UserWarning, match="8 groups do not divide 12 channels; took 4") as caught:
        assert [make(channels).num_groups for channels in (12, 20, 7, 12)] == [4, 4, 1, 4]
    assert len(caught) == 1


def test_a_group_of_one_feature_is_refused():
    with pytest.raises(UsageError, match="'group:8': a group of one of 4 features has no variance"):
        norm_layer("group:8", dim=1)(4)
    with warnings.catch_warnings(action="ignore"):
        assert norm_layer("group:8", dim=1)(12).num_groups == 4
        assert norm_layer("group:8", dim=2)(4).num_groups == 4


def test_a_function_is_handed_back():
    def make(num_features):
        return nn.BatchNorm2d(num_features, affine=False)

    assert norm_layer(make) is make
    assert norm_layer(nn.BatchNorm2d) is nn.BatchNorm2d


def test_which_need_no_bias_before_them():
    assert {spec for spec in CLASSES if not normalizes(spec)} == {"none", "noisy-none"}
    assert normalizes("batch:momentum=0.01")
    assert normalizes(nn.BatchNorm2d)
    assert not normalizes(nn.Identity)
    with pytest.raises(UsageError, match="got norm 'nune'"):
        normalizes("nune")
