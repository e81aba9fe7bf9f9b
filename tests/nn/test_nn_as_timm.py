"""The words of timm in our constructor; with timm itself: tests/integrations."""

from __future__ import annotations

import subprocess
import sys
from functools import partial

import pytest
import torch
from torch import nn

import spiritlevel as sl
from spiritlevel.errors import UsageError
from spiritlevel.nn import BatchNorm2d, BatchNormAct2d


class GELU(nn.GELU):
    """As timm has one of its own."""


GELU.__module__ = "timm.layers.activations"


class Elsewhere(nn.GELU):
    """Not known to compute what torch's does."""


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ({}, "relu"),
        ({"apply_act": True}, "relu"),
        ({"apply_act": False}, "identity"),
        ({"apply_act": False, "act_layer": nn.SiLU}, "identity"),
        ({"act_layer": None}, "identity"),
        ({"act_layer": nn.Identity}, "identity"),
        ({"act_layer": nn.SiLU, "inplace": True, "act_kwargs": {"inplace": True}}, "silu"),
        ({"act_layer": nn.Hardswish, "act_kwargs": None}, "hardswish"),
        ({"act_layer": partial(nn.ReLU6, inplace=True)}, "relu6"),
        ({"act_layer": lambda inplace: nn.ReLU(inplace)}, "relu"),
        ({"act_layer": nn.GELU}, "gelu"),
        ({"act_layer": GELU}, "gelu"),
        ({"act_layer": nn.LeakyReLU, "act_kwargs": {"negative_slope": 0.2}}, "leaky_relu:0.2"),
        ({"act_layer": "leaky_relu", "act_kwargs": {"negative_slope": 0.2}}, "leaky_relu:0.2"),
        ({"act_layer": "hard_swish"}, "hardswish"),
        ({"act_layer": "swish"}, "silu"),
        ({"act_layer": "relu", "drop_layer": None}, "relu"),
    ],
)
def test_the_activation_they_ask_for(words, wanted):
    layer = BatchNormAct2d(3, **words)
    assert str(layer.act) == wanted
    x = torch.randn(4, 3, 5, 5)
    assert torch.allclose(layer(x), layer.act(BatchNorm2d(3)(x)), atol=1e-6)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ({"act_layer": nn.PReLU}, "got act_layer=PReLU for BatchNormAct2d; wanted one of identity"),
        ({"act_layer": "mish"}, "got act_layer='mish' for BatchNormAct2d; wanted one of identity"),
        ({"act_layer": Elsewhere}, "got act_layer=Elsewhere for"),
        ({"act_layer": nn.GELU, "act_kwargs": {"approximate": "tanh"}}, "got act_layer=GELU for"),
        ({"act_layer": nn.ReLU, "drop_layer": nn.Dropout}, "got drop_layer=Dropout for BatchNorm"),
        ({"act_layer": nn.ReLU, "act": "silu"}, "got act='silu' and act_layer=ReLU for BatchNorm"),
        ({"act": "mish"}, "got activation 'mish'; wanted one of"),
    ],
    ids=str,
)
def test_what_one_pass_cannot_do_is_an_error(words, told):
    with pytest.raises(UsageError) as caught:
        BatchNormAct2d(3, **words)
    assert str(caught.value).startswith(told)


def test_other_words_are_an_error_as_python_has_it():
    with pytest.raises(TypeError, match=r"got an unexpected keyword argument 'inplce'"):
        BatchNormAct2d(3, inplce=True)


def called_in(module, code):
    """What `code` makes as `layer` in a module of that name."""
    given = {"__name__": module, "nn": sl.nn}
    exec(code, given)
    return given["layer"]


def test_a_model_of_timm_that_wants_a_plain_norm_is_told():
    with pytest.raises(UsageError) as caught:
        called_in("timm.models.resnet", "layer = nn.BatchNormAct2d(3, device=None)")
    assert str(caught.value) == (
        "got BatchNormAct2d as the norm_layer of timm.models.resnet, which wants a plain norm and "
        "adds activations itself: each norm would end in one more (relu), also before sums. Take "
        "spiritlevel.nn.BatchNorm2d there, and spiritlevel.fuse"
    )


@pytest.mark.parametrize(
    ("module", "given"),
    [
        ("timm.models.resnet", "act_layer=None"),
        ("timm.models.resnet", "apply_act=True"),
        ("timm.models.resnet", "act='identity'"),
        ("timm_of_mine", ""),
        ("my.timm", ""),
    ],
)
def test_others_are_not(module, given):
    assert called_in(module, f"layer = nn.BatchNormAct2d(3, {given})").num_features == 3


def test_the_name_is_there_as_any_other():
    assert sl.nn.BatchNormAct2d is BatchNormAct2d is sl.nn.batch.BatchNormAct2d
    assert "BatchNormAct2d" in dir(sl.nn)
    with pytest.raises(AttributeError, match=r"module 'spiritlevel.nn' has no attribute 'Batch'"):
        sl.nn.Batch  # noqa: B018


def test_timm_is_not_imported_for_it():
    code = "import sys, spiritlevel as sl; sl.nn.BatchNormAct2d(3); print('timm' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.split() == ["False"], done.stderr
