"""fold on whole models: what is looked into, what is kept, and what is refused."""

from __future__ import annotations

import copy
import sys

import pytest
import torch
from fold_cases import lived
from test_fold import left, norms, same
from torch import fx, nn
from torch.nn.utils import parametrizations, prune

import spiritlevel as sl
from spiritlevel.errors import UsageError
from spiritlevel.models.reparam import deploy

IMAGES = (2, 3, 12, 12)


def pair():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())


def test_a_folded_ghostnet_has_no_norm_and_the_papers_parameters():
    model = lived(sl.create_model("ghostnet_100"))
    folded = sl.fold(model, torch.randn(1, 3, 64, 64))
    assert norms(folded) == []
    assert sum(p.numel() for p in folded.parameters()) == 5_171_524
    assert left(folded) == {}
    x = torch.randn(3, 3, 96, 96)
    y = model(x)
    assert (folded(x) - y).abs().max() <= 1e-5 * y.abs().max()


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("ghostnet_050", {"norm": "batch", "stem": "cifar"}),
        pytest.param("ghostnetv2_100", {}, marks=pytest.mark.slow),
        pytest.param("ghostnetv3_050", {}, marks=pytest.mark.slow),
        ("ghost_vgg16", {"width": 0.125}),
        pytest.param("resnet56", {}, marks=pytest.mark.slow),
        pytest.param("ghost_resnet56", {}, marks=pytest.mark.slow),
    ],
)
def test_models_of_ours(name, options):
    torch.manual_seed(0)
    options = options | ({"num_classes": 10} if "56" in name or "vgg" in name else {})
    model, x = lived(sl.create_model(name, **options)), torch.randn(2, 3, 32, 32)
    folded = sl.fold(model, x)
    assert norms(folded) == []
    y = model(x)
    assert (folded(x) - y).abs().max() <= 2e-5 * y.abs().max()
    fused = sl.fold(sl.fuse(copy.deepcopy(model)), x)
    assert norms(fused) == []
    assert (fused(x) - y).abs().max() <= 2e-5 * y.abs().max()


@pytest.mark.slow
def test_the_branches_of_v3_become_one_before():
    model, x = lived(sl.create_model("ghostnetv3_050")), torch.randn(2, 3, 32, 32)
    folded = sl.fold(model, x)
    assert not any(getattr(module, "branched", False) for module in folded.modules())
    convs = sum(isinstance(module, nn.Conv2d) for module in folded.modules())
    assert convs == sum(isinstance(module, nn.Conv2d) for module in deploy(model).modules())


@pytest.mark.parametrize(
    "norm",
    [
        pytest.param("ghost:2", marks=pytest.mark.slow),
        "renorm",
        pytest.param("frozen", marks=pytest.mark.slow),
        pytest.param("none", marks=pytest.mark.slow),
    ],
)
def test_ghostnets_of_other_norms(norm):
    model = lived(sl.create_model("ghostnet_050", norm=norm))
    folded = sl.fold(model, torch.randn(IMAGES[0], 3, 32, 32))
    assert norms(folded) == []


def test_a_group_norm_is_no_batch_norm():
    folded = sl.fold(nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4)), torch.randn(IMAGES))
    assert [str(entry) for entry in folded.spiritlevel_log] == [
        "left: there is no batch norm to fold"
    ]


def test_the_model_stays_as_it_was():
    model = lived(pair()).train()
    model[1].weight.requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    state = torch.get_rng_state()
    x = torch.randn(IMAGES, generator=torch.Generator().manual_seed(0))
    kept = x.clone()
    folded = sl.fold(model, x)
    assert model.training
    assert model[1].training
    assert not folded.training
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(x, kept)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert not hasattr(model, "spiritlevel_log")
    assert model[0].weight.data_ptr() != folded[0].weight.data_ptr()


@pytest.mark.parametrize(("dtype", "within"), [(torch.bfloat16, 0.03), (torch.float64, 1e-12)])
def test_it_is_computed_in_float64_and_kept_in_the_models_type(dtype, within):
    model, x = lived(pair()).to(dtype), torch.randn(IMAGES, dtype=dtype)
    folded = sl.fold(model, x)
    assert {p.dtype for p in folded.parameters()} == {dtype}
    y = model(x)
    assert (folded(x) - y).abs().max() <= within * y.abs().max()


def test_code_that_asks_for_float32_is_compared_in_float32():
    class Casts(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = pair()

        def forward(self, x):
            return self.body(x.float())

    model, x = lived(Casts()), torch.randn(IMAGES)
    assert norms(sl.fold(model, x)) == []


def test_parametrized_weights_become_plain_ones():
    model = pair()
    parametrizations.weight_norm(model[0])
    model, x = lived(model), torch.randn(IMAGES)
    folded = sl.fold(model, x)
    assert norms(folded) == []
    assert type(folded[0]) is nn.Conv2d
    same(model, folded, x)


def hooked(model):
    model[1].register_forward_hook(lambda *_: None)
    return model


def pruned(model):
    prune.l1_unstructured(model[0], "weight", 0.5)
    return model


def without_statistics(model):
    model[1] = nn.BatchNorm2d(4, track_running_stats=False)
    return model


def always_training(model):
    class Always(nn.BatchNorm2d):
        def train(self, mode=True):
            return super().train(True)

    model[1] = Always(4)
    return model


def not_finite(model):
    model[1].running_var[0] = float("nan")
    return model


def replaced(model):
    model[1].forward = lambda x: x
    return model


def own_conv(model):
    class Standardized(nn.Conv2d):
        def forward(self, x):
            return super().forward(x - x.mean())

    model[0] = Standardized(3, 4, 3)
    return model


def own_norm(model):
    class Squared(nn.BatchNorm2d):
        def forward(self, x):
            return super().forward(x) ** 2

    model[1] = Squared(4)
    return model


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (hooked, "is hooked"),
        (pruned, "0 is hooked (old weight or spectral norm, pruning"),
        (without_statistics, "has no running statistics"),
        (not_finite, "not finite"),
        (replaced, "has its forward replaced"),
        (own_conv, "conv2d() comes before it, which is no convolution"),
        (own_norm, "is a Squared that does more in eval() than scale and shift"),
    ],
)
def test_what_is_not_what_it_seems_stays(change, why):
    torch.manual_seed(0)
    model = change(lived(pair()))
    model.eval()
    folded = sl.fold(model, torch.randn(IMAGES))
    assert why in left(folded)["1",]
    assert folded[1] is not model[1]
    assert norms(folded) == ["1"]


def test_a_norm_that_stays_in_training_is_left():
    model = always_training(lived(pair()))
    assert "stays in training after eval()" in left(sl.fold(model, torch.randn(IMAGES)))["1",]


def test_a_norm_of_another_library_that_ends_in_an_activation():
    class BatchNormThenAct(nn.BatchNorm2d):
        """As timm's is written."""

        def __init__(self, features):
            super().__init__(features)
            self.drop, self.act = nn.Identity(), nn.ReLU(inplace=True)

        def forward(self, x):
            x = nn.functional.batch_norm(
                x, self.running_mean, self.running_var, self.weight, self.bias, self.training
            )
            return self.act(self.drop(x))

    model = lived(nn.Sequential(nn.Conv2d(3, 4, 3), BatchNormThenAct(4), nn.Conv2d(4, 2, 1)))
    x = torch.randn(IMAGES)
    folded = sl.fold(model, x)
    assert norms(folded) == []
    assert type(folded[1]) is nn.ReLU
    same(model, folded, x)


def test_a_frozen_norm_that_is_no_batch_norm_by_class():
    class Frozen(nn.Module):
        """As torchvision's is written."""

        def __init__(self, features):
            super().__init__()
            for name in ("weight", "bias", "running_mean", "running_var"):
                self.register_buffer(name, torch.ones(features))
            self.eps = 1e-5

        def forward(self, x):
            scale = self.weight * (self.running_var + self.eps).rsqrt()
            return x * scale[:, None, None] + (self.bias - self.running_mean * scale)[:, None, None]

    model, x = lived(nn.Sequential(nn.Conv2d(3, 4, 3), Frozen(4))), torch.randn(IMAGES)
    folded = sl.fold(model, x)
    assert norms(folded) == []
    same(model, folded, x)


def test_a_kind_of_convolution_that_runs_as_torchs():
    class Depthwise(nn.Conv2d):
        def __init__(self, channels):
            super().__init__(channels, channels, 3, groups=channels)

    model, x = lived(nn.Sequential(Depthwise(3), nn.BatchNorm2d(3))), torch.randn(IMAGES)
    folded = sl.fold(model, x)
    assert norms(folded) == []
    same(model, folded, x)


class Chooses(nn.Module):
    """No graph: it looks at a value."""

    def __init__(self):
        super().__init__()
        self.body, self.other = lived(pair()), lived(pair(), 1)
        self.conv, self.bn = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x):
        x = self.body(x) if x.mean() > 0 else self.other(x)
        return self.bn(self.conv(x))


def test_parts_of_a_model_that_is_no_graph_are_looked_into():
    model = lived(Chooses())
    x = torch.rand(IMAGES) + 0.1
    folded = sl.fold(model, x)
    assert norms(folded) == ["other.1", "bn"]
    assert left(folded)["other.1",] == "the example does not come by"
    assert "Chooses, which calls it, is no graph" in left(folded)["bn",]
    for each in (x, -x):
        assert torch.allclose(folded(each), model(each), rtol=1e-4, atol=1e-5)


def test_an_optional_argument_that_is_not_given():
    class Optional(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.one, self.two = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.BatchNorm2d(4)

        def forward(self, x, mask=None):
            x = self.conv(x)
            return self.one(x) if mask is None else self.two(x * mask)

    model, x = lived(Optional()), torch.randn(IMAGES)
    folded = sl.fold(model, x)
    mask = torch.ones(1)
    assert norms(folded) == ["one", "two"]
    assert torch.equal(folded(x), model(x))
    assert torch.equal(folded(x, mask), model(x, mask))


def test_inputs_by_place_and_by_name():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = pair(), pair()

        def forward(self, image, other):
            return {"sum": self.a(image) + self.b(other), "list": [self.a(other)]}

    model = lived(Two())
    image, other = torch.randn(IMAGES), torch.randn(IMAGES)
    for example in ((image, other), {"other": other, "image": image}):
        folded = sl.fold(model, example)
        assert norms(folded) == []
        assert torch.allclose(folded(image, other)["sum"], model(image, other)["sum"], atol=1e-5)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_a_graph_module_and_a_scripted_part():
    traced = fx.symbolic_trace(lived(pair()))
    assert norms(sl.fold(traced, torch.randn(IMAGES))) == []
    scripted = nn.Sequential(torch.jit.script(lived(pair())), nn.Conv2d(4, 2, 1))
    folded = sl.fold(scripted, torch.randn(IMAGES))
    assert torch.equal(folded(torch.ones(IMAGES)), scripted.eval()(torch.ones(IMAGES)))


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_what_is_wrapped_is_folded_without_its_wrapper():
    model = lived(pair())
    folded = sl.fold(torch.compile(model), torch.randn(IMAGES))
    assert type(folded) is nn.Sequential
    assert norms(folded) == []


class Sly(nn.Module):
    """Looks at what its layers are, as no graph shows."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)
        self.last = nn.Conv2d(4, 4, 1)

    def forward(self, x):
        x = self.bn(self.conv(x))
        return self.last(x * 2 if isinstance(self.bn, nn.BatchNorm2d) else x)


def test_a_model_that_would_be_wrong_is_refused_and_its_layer_named():
    model = lived(Sly())
    with pytest.raises(UsageError, match=r"gives other numbers once it is folded, first in the ou"):
        sl.fold(model, torch.randn(IMAGES))

    class Asks(Sly):
        def forward(self, x):
            return self.last(self.bn(self.conv(x)) * self.bn.num_features)

    with pytest.raises(UsageError, match="raises AttributeError once it is folded"):
        sl.fold(lived(Asks()), torch.randn(IMAGES))


def test_a_first_layer_that_differs_is_named(monkeypatch):
    """The arithmetic is made wrong for one layer, as by a fault of ours."""
    module = sys.modules[sl.fold.__module__]
    right = module.merge_after
    monkeypatch.setattr(
        module,
        "merge_after",
        lambda layer, factor, shift: right(layer, factor, shift + (layer.out_channels == 5)),
    )
    model = lived(
        nn.Sequential(pair(), nn.Conv2d(4, 5, 1), nn.BatchNorm2d(5), nn.ReLU(), nn.Conv2d(5, 4, 1))
    )
    with pytest.raises(UsageError, match=r"first in what 2 gives \(in float64\)"):
        sl.fold(model, torch.randn(IMAGES))


@pytest.mark.parametrize("given", [None, 3, "model", nn.Sequential])
def test_what_is_no_model(given):
    with pytest.raises(UsageError, match=r"wanted a torch\.nn\.Module"):
        sl.fold(given, torch.randn(IMAGES))


def test_lazy_layers():
    with pytest.raises(UsageError, match="lazy layers"):
        sl.fold(nn.Sequential(nn.LazyConv2d(4, 3), nn.BatchNorm2d(4)), torch.randn(IMAGES))


def test_an_example_that_does_not_fit():
    with pytest.raises(UsageError, match=r"raised RuntimeError on the example: Given groups=1"):
        sl.fold(pair(), torch.randn(2, 5, 8, 8))
