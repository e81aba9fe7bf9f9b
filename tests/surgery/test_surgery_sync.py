"""Synced norms in models that are changed: converted there and back, folded, fused, deployed."""

from __future__ import annotations

import copy

import pytest
import torch
from surgery_models import why_of
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

import spiritlevel as sl
from spiritlevel.errors import UsageError
from spiritlevel.models.reparam import deploy
from spiritlevel.nn import SyncBatchNorm


def norms(model):
    return {path: m for path, m in model.named_modules() if isinstance(m, _BatchNorm)}


def moved(model, seed=0):
    """Weights and statistics that are not those it began with."""
    generator = torch.Generator().manual_seed(seed)
    for norm in norms(model).values():
        for tensor in (norm.weight, norm.bias, norm.running_mean):
            if tensor is not None:
                tensor.data.normal_(generator=generator)
        norm.running_var.uniform_(0.5, 2, generator=generator)
        norm.num_batches_tracked.fill_(3)
    return model


class Block(nn.Module):
    """All that is fused: a norm alone, before an activation, and before a sum."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4, momentum=None)
        self.act = nn.Hardswish()
        self.conv2, self.bn2 = nn.Conv2d(4, 3, 1), nn.BatchNorm2d(3, eps=1e-3, affine=False)
        self.conv3, self.bn3 = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3, momentum=0.3)

    def forward(self, x):
        y = self.bn2(self.conv2(self.act(self.bn(self.conv(x))))) + x
        return self.bn3(self.conv3(y))


X = torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


ALONE = (
    "is fused with what follows it, which goes to batch, sync and frozen only; convert before you "
    "fuse"
)


def fused():
    return sl.fuse(moved(Block().double()))


def test_a_fused_model_goes_there_and_back():
    torch.manual_seed(0)
    model = fused()
    model.bn3.eval()  # frozen
    before, state = norms(model), model.state_dict()
    wanted = copy.deepcopy(model)
    kinds = [type(each).__name__ for each in before.values()]
    assert kinds == ["BatchNormAct2d", "BatchNormAct2d", "BatchNorm2d"]
    sl.convert(model, "sync")
    synced = norms(model)
    assert [type(each) for each in synced.values()] == [SyncBatchNorm] * 3
    assert [str(each.act) for each in synced.values()] == ["hardswish", "identity", "identity"]
    assert_as(synced, before)
    synced_model = copy.deepcopy(model)
    sl.convert(model, "batch")
    assert [type(each) for each in norms(model).values()] == [type(e) for e in before.values()]
    assert_as(norms(model), before)
    assert all(model.state_dict()[name] is not None for name in state)
    for mode in ("train", "eval"):
        outputs = [getattr(each, mode)()(X) for each in (wanted, synced_model, model)]
        assert torch.equal(outputs[0], outputs[1])
        assert torch.equal(outputs[0], outputs[2])


def assert_as(norms, before):
    for norm, old in zip(norms.values(), before.values(), strict=True):
        for name in ("eps", "momentum", "affine", "training", "act", "track_running_stats"):
            assert getattr(norm, name) == getattr(old, name)
        for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
            assert getattr(norm, name) is getattr(old, name)


@pytest.mark.parametrize("dim", [1, 2, 3])
def test_the_number_of_axes_comes_back(dim):
    """Where no layer before it tells: the synced layer remembers."""
    for kind in ("BatchNorm", "BatchNormAct"):
        model = nn.Sequential(nn.Identity(), getattr(sl.nn, f"{kind}{dim}d")(4))
        sl.convert(model, "sync:momentum=0.5")
        assert model[1].momentum == 0.5
        sl.convert(model, "batch")
        assert type(model[1]) is getattr(sl.nn, f"{kind}{dim}d")
        assert model[1].momentum == 0.5


def test_torchs_own_layer_is_taken_with_its_group():
    model = nn.Sequential(nn.SyncBatchNorm(3, momentum=0.2, process_group="a group"))
    old = model[0]
    sl.convert(model, "sync")
    assert type(model[0]) is SyncBatchNorm
    assert (model[0].process_group, model[0].momentum) == ("a group", 0.2)
    assert model[0].weight is old.weight
    sl.convert(model, "sync:momentum=0.3")
    assert (model[0].process_group, model[0].momentum) == ("a group", 0.3)
    sl.convert(model, "batch")
    assert why_of(model, "0") == "is a SyncBatchNorm that does not tell how many axes its input has"


def test_one_made_by_hand_may_be_given_a_residual():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), SyncBatchNorm(4, act="silu"), SyncBatchNorm(4))
    sl.convert(model, "batch")
    assert [type(each).__name__ for each in model[1:]] == ["BatchNormAct2d"] * 2
    assert [str(each.act) for each in model[1:]] == ["silu", "identity"]
    made = nn.Sequential(nn.Conv2d(3, 4, 1), sl.nn.norm_layer("sync")(4))
    assert type(sl.convert(made, "batch")[1]) is sl.nn.BatchNorm2d


@pytest.mark.parametrize("norm", ["group:2", nn.BatchNorm2d])
def test_to_others_an_activation_cannot_go(norm):
    model = nn.Sequential(nn.Conv2d(3, 4, 1), SyncBatchNorm(4, act="silu"), SyncBatchNorm(4))
    sl.convert(model, norm)
    assert [type(each) is SyncBatchNorm for each in model[1:]] == [True, False]
    assert why_of(model, "1") == ALONE


def test_a_layer_of_the_users_own_making_keeps_what_it_ends_in():
    model = nn.Sequential(nn.BatchNorm2d(4), sl.nn.BatchNorm2d(4), sl.nn.BatchNormAct2d(4, "silu"))
    sl.convert(model, lambda features: SyncBatchNorm(features, act="relu"))
    assert [str(each.act) for each in model] == ["relu", "relu", "silu"]


def test_without_running_statistics():
    model = nn.Sequential(sl.nn.BatchNormAct2d(4, track_running_stats=False, bias=False))
    for spec in ("sync", "batch"):
        sl.convert(model, spec)
        assert model[0].running_mean is model[0].bias is None
        assert not model[0].track_running_stats
        model.eval()(torch.randn(2, 4, 3, 3))


def test_folding_keeps_the_activation_and_the_sum():
    model = sl.convert(fused(), "sync").eval()
    folded = sl.fold(model, X)
    assert not norms(folded)
    torch.testing.assert_close(folded(X), model(X), rtol=1e-10, atol=1e-10)
    alone = nn.Sequential(nn.Conv2d(3, 4, 3), moved(SyncBatchNorm(4, act="relu"))).double().eval()
    with torch.no_grad():
        assert float(sl.fold(alone, X)(X).min()) == 0.0 == float(alone(X).min())


def test_a_synced_model_is_fused_around_its_norms():
    model = sl.convert(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()), "sync")
    wanted = model.double().train()(X)
    sl.fuse(model)
    assert type(model[1]) is SyncBatchNorm
    assert torch.equal(model(X), wanted)


@pytest.mark.slow
def test_a_model_of_branches_is_deployed_once_it_is_unfused():
    """GhostNetV3 fused, then synced: its branches cannot be merged with activations in them."""
    torch.manual_seed(0)
    model = moved(sl.create_model("ghostnetv3_100", num_classes=3, stem="cifar")).eval()
    x = torch.randn(2, 3, 32, 32)
    sl.convert(sl.fuse(model, x), "sync")
    assert model.made_as["norm"] == "sync"
    with pytest.raises(UsageError, match="norms are fused with what follows them"):
        deploy(model)
    folded = sl.fold(model, x)
    assert not norms(folded)
    torch.testing.assert_close(folded(x), model(x), rtol=1e-3, atol=1e-3)


@pytest.mark.slow
def test_export(tmp_path):
    model = sl.convert(fused().float(), "sync").eval()
    report = sl.export(model, tmp_path / "synced.onnx", X.float())
    assert (tmp_path / "synced.onnx").exists()
    assert report
