"""Norms that end in an activation or a sum, frozen by `convert`: they keep both."""

from __future__ import annotations

import copy

import pytest
import torch
from surgery_models import why_of
from torch import nn

import spiritlevel as sl
from spiritlevel.errors import UsageError
from spiritlevel.models.reparam import deploy
from spiritlevel.nn import FrozenBatchNorm, FrozenBatchNormAct, SyncBatchNorm

X = torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


class Block(nn.Module):
    """A norm before an activation, one before a sum, and one alone."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn, self.act = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.SiLU()
        self.conv2, self.bn2 = nn.Conv2d(4, 3, 1), nn.BatchNorm2d(3, eps=1e-3)
        self.conv3, self.bn3 = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, x):
        y = self.bn2(self.conv2(self.act(self.bn(self.conv(x))))) + x
        return self.bn3(self.conv3(y))


def fused():
    torch.manual_seed(0)
    model = Block().double()
    for _ in range(3):
        model(3 * X + 1)
    model.eval()
    return sl.fuse(model)


def test_what_follows_is_kept_in_training_and_in_eval():
    model = fused()
    wanted = model(X)
    sl.convert(model, "frozen")
    assert [type(norm) for norm in (model.bn, model.bn2, model.bn3)] == [
        FrozenBatchNormAct,
        FrozenBatchNormAct,
        FrozenBatchNorm,
    ]
    torch.testing.assert_close(model.train()(X), wanted, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(model.eval()(X), wanted, rtol=1e-12, atol=1e-12)
    assert not any("bn" in name for name, _ in model.named_parameters())
    assert [str(entry) for entry in model.spiritlevel_log if entry.action == "converted"]


@pytest.mark.parametrize("norm", ["batch", "sync"])
def test_it_goes_on_to_others_and_back(norm):
    model = fused()
    wanted = model(X)
    for spec in ("frozen", norm, "frozen", norm):
        sl.convert(model, spec)
        torch.testing.assert_close(model.eval()(X), wanted, rtol=1e-12, atol=1e-12)
    expected = SyncBatchNorm if norm == "sync" else sl.nn.BatchNormAct2d
    assert type(model.bn) is type(model.bn2) is expected
    if norm == "sync":
        assert model.bn2.fused  # though its activation is none: it adds


def test_a_layer_of_the_users_own_making():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), sl.nn.BatchNormAct2d(4, "relu6")).double().eval()
    wanted = copy.deepcopy(model)(9 * X)
    assert str(sl.convert(model, "frozen")[1].act) == "relu6"
    assert torch.equal(model.train()(9 * X), wanted)
    sl.convert(model, "group:2")
    assert why_of(model, "1").startswith("is fused with what follows it, which goes to batch")


@pytest.mark.parametrize("norm", ["frozen", "batch"])
@pytest.mark.parametrize("act", ["identity", "silu"])
def test_a_synced_norm_of_the_users_own_making(act, norm):
    model = nn.Sequential(nn.Conv2d(3, 4, 1), SyncBatchNorm(4, act=act)).double().eval()
    wanted = copy.deepcopy(model)(9 * X)
    assert str(sl.convert(model, norm)[1].act) == act
    torch.testing.assert_close(model(9 * X), wanted, rtol=1e-12, atol=1e-12)


def test_folding_keeps_the_activation_and_the_sum():
    model = sl.convert(fused(), "frozen").eval()
    folded = sl.fold(model, X)
    assert not any(isinstance(m, FrozenBatchNorm) for m in folded.modules())
    torch.testing.assert_close(folded(X), model(X), rtol=1e-10, atol=1e-10)


def test_branches_are_not_merged_with_an_activation_in_them():
    model = sl.create_model("ghostnetv3_050", num_classes=3, stem="cifar")
    for module in model.modules():
        for child, norm in list(module._modules.items()):
            if type(norm) is sl.nn.BatchNorm2d:
                module._modules[child] = FrozenBatchNormAct(norm.num_features)
    with pytest.raises(UsageError, match="norms are fused with what follows them"):
        deploy(model.eval())


@pytest.mark.slow
def test_export(tmp_path):
    model = sl.convert(fused().float(), "frozen").eval()
    assert sl.export(model, tmp_path / "frozen.onnx", X.float())
