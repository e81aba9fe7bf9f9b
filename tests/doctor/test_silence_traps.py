"""No error and no warning on what is right and looks like a fault."""

from __future__ import annotations

import copy

import pytest
import torch
from case_book import batches, blobs, small_net, train
from cases_conversion import averaged
from quiet import aloud
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import spiritlevel as sl
from spiritlevel.doctor.check import check
from spiritlevel.models import zero_branches_
from spiritlevel.probe.watch import Probe


def trained(model: nn.Module, epochs: int = 3, **images) -> nn.Module:
    return train(model, batches(*blobs(**images)), epochs)


def quiet_with_data(model: nn.Module, **images) -> bool:
    """In both modes, with data and without."""
    pairs = batches(*blobs(**images))
    found = []
    for training in (True, False):
        model.train(training)
        found += [*aloud(model), *aloud(model, pairs)]
    assert found == []
    return True


class Residual(nn.Module):
    """x + branch(x), whose last gamma starts at 0."""

    def __init__(self, channels: int = 8):
        super().__init__()
        self.branch = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
        )
        nn.init.zeros_(self.branch[-1].weight)

    def forward(self, x):
        return F.relu(x + self.branch(x))


def with_body(*body: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    head = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), *body, *head)


def test_zero_initialised_last_gammas():
    assert aloud(with_body(Residual(), Residual())) == []
    model = sl.create_model("small_resnet", num_classes=3)
    zero_branches_(model)
    assert aloud(model) == []
    quiet_with_data(trained(with_body(Residual(), Residual())))


def test_the_gap_of_the_unbiased_variance():
    """n / (n - 1) with 4 values a channel, which is no fault."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(4, 8), nn.BatchNorm1d(8, momentum=None), nn.ReLU(), nn.Linear(8, 3)
    )
    x, y = torch.randn(256, 4), torch.arange(256) % 3
    train(model, batches(x, y, size=64), epochs=3)
    torch.optim.swa_utils.update_bn(batches(x, y, size=64), model)
    assert aloud(model) == []
    assert aloud(model, batches(x, y, size=64)) == []


@pytest.mark.parametrize(
    "norm",
    [
        lambda: nn.InstanceNorm2d(8),
        lambda: nn.InstanceNorm2d(8, affine=True, track_running_stats=True),
        lambda: nn.GroupNorm(2, 8),
        lambda: nn.GroupNorm(1, 8),
        lambda: nn.Identity(),
    ],
    ids=["instance", "tracking instance", "group", "layer", "none"],
)
def test_norms_that_take_nothing_of_the_batch(norm):
    assert aloud(with_body(norm(), nn.ReLU())) == []
    quiet_with_data(trained(with_body(norm(), nn.ReLU())))


def pretrained_with_a_new_head() -> nn.Sequential:
    model = trained(small_net())
    model.zero_grad()
    model[8] = nn.Linear(8, 3)
    return model


def test_a_part_frozen_on_purpose():
    model = pretrained_with_a_new_head()
    model[:6].requires_grad_(False)
    model.train()
    model[:6].eval()
    assert aloud(model) == []
    assert aloud(model, batches(*blobs())) == []
    assert aloud(model.eval()) == []


def test_norms_in_eval_while_the_rest_trains():
    model = pretrained_with_a_new_head()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    model.train()
    for norm in (model[1], model[4]):
        norm.eval()
    for x, y in batches(*blobs()):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    assert aloud(model) == []


def test_norms_in_eval_from_the_start():
    """Their statistics are 0 and 1 in training as in eval: a scale and a shift."""
    model = small_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for norm in (model[1], model[4]):
        norm.eval()
    for x, y in batches(*blobs()):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    assert aloud(model) == []


def test_a_norm_used_twice_on_the_same_distribution():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm2d(8)

        def forward(self, x):
            left, right = x.split(x.shape[-1] // 2, dim=-1)
            return torch.cat([self.norm(left), self.norm(right)], dim=-1).relu()

    assert aloud(with_body(Twice())) == []
    quiet_with_data(trained(with_body(Twice())))


def test_one_norm_in_two_places():
    norm = nn.BatchNorm2d(8)
    assert aloud(with_body(norm, nn.ReLU(), nn.Conv2d(8, 8, 1), norm)) == []


def test_a_batch_norm_on_1x1_with_many_samples():
    body = nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(8), nn.ReLU()
    model = with_body(*body)
    assert aloud(model) == []
    pairs = batches(*blobs(n=512), size=128)
    train(model, pairs, epochs=10)
    for training in (True, False):
        assert aloud(model.train(training), pairs) == []


def test_a_transformer():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    model = nn.Sequential(
        nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Linear(16, 3)
    )
    x = torch.randn(32, 5, 16)
    assert aloud(model) == []
    assert aloud(model, [x, x]) == []
    assert aloud(model.eval(), [x]) == []


def test_models_without_norms():
    for model in (nn.Linear(3, 3), nn.Sequential(), nn.Identity(), nn.LSTM(3, 3)):
        assert aloud(model) == []
    assert aloud(nn.Sequential(nn.Linear(3, 4), nn.Dropout(), nn.Linear(4, 3))) == []


# training loops
def watched(loop) -> list[str]:
    """The loop is given the model, its optimizer and the batches of an epoch, and runs probed."""
    model = small_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    pairs = batches(*blobs())
    with Probe(model, optimizer=optimizer, every=2) as probe:
        for _ in range(3):
            model.train()
            loop(model, optimizer, pairs)
    return [*aloud(model, probe=probe), *aloud(model.eval(), pairs, probe=probe)]


def backward(model, x, y) -> None:
    F.cross_entropy(model(x), y).backward()


def test_a_loop_with_evaluation_between():
    def loop(model, optimizer, pairs):
        for x, y in pairs:
            optimizer.zero_grad()
            backward(model, x, y)
            optimizer.step()
        model.eval()
        with torch.no_grad():
            model(pairs[0][0])

    assert watched(loop) == []


def test_gradient_accumulation():
    def loop(model, optimizer, pairs):
        for number, (x, y) in enumerate(pairs):
            backward(model, x, y)
            if number % 2:
                optimizer.step()
                optimizer.zero_grad()

    assert watched(loop) == []


def test_sharpness_aware_minimization_that_spares_the_statistics():
    def loop(model, optimizer, pairs):
        norms = [module for module in model if isinstance(module, nn.BatchNorm2d)]
        for x, y in pairs:
            optimizer.zero_grad()
            backward(model, x, y)
            moves = [0.05 * p.grad / (p.grad.norm() + 1e-12) for p in model.parameters()]
            with torch.no_grad():
                for parameter, move in zip(model.parameters(), moves, strict=True):
                    parameter += move
            optimizer.zero_grad()
            for norm in norms:
                norm.momentum = 0.0
            backward(model, x, y)
            for norm in norms:
                norm.momentum = 0.1
            with torch.no_grad():
                for parameter, move in zip(model.parameters(), moves, strict=True):
                    parameter -= move
            optimizer.step()

    assert watched(loop) == []


# GANs
def generator() -> nn.Sequential:
    return nn.Sequential(
        nn.ConvTranspose2d(8, 16, 4, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.ConvTranspose2d(16, 3, 4, stride=2, padding=1),
        nn.Tanh(),
    )


def discriminator() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 16, 4, stride=2, padding=1),
        nn.LeakyReLU(0.2),
        nn.Conv2d(16, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.LeakyReLU(0.2),
        nn.Conv2d(16, 1, 4),
        nn.Flatten(),
    )


def as_dcgan_starts(module: nn.Module) -> None:
    if "Conv" in type(module).__name__:
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif "BatchNorm" in type(module).__name__:
        nn.init.normal_(module.weight, 1.0, 0.02)
        nn.init.zeros_(module.bias)


def gan() -> nn.ModuleDict:
    torch.manual_seed(0)
    pair = nn.ModuleDict({"generator": generator(), "discriminator": discriminator()})
    return pair.apply(as_dcgan_starts)


def test_a_gan_as_built():
    pair = gan()
    for model in (pair, pair["generator"], pair["discriminator"]):
        assert aloud(model) == []
        assert aloud(model.eval()) == []


def test_a_discriminator_frozen_for_the_generators_step():
    pair = gan()
    x = torch.randn(16, 3, 8, 8)
    pair["discriminator"](x).mean().backward()
    pair["discriminator"].requires_grad_(False)
    pair["discriminator"](pair["generator"](torch.randn(16, 8, 1, 1))).mean().backward()
    assert aloud(pair) == []
    assert aloud(pair["discriminator"]) == []


# momentum networks
class Momentum(nn.Module):
    """MoCo's pair: the second follows the first, learns nothing, and is in train() on purpose."""

    def __init__(self):
        super().__init__()
        self.online = small_net()
        self.predictor = nn.Sequential(
            nn.Linear(3, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)
        )
        self.target = copy.deepcopy(self.online).requires_grad_(False)

    def forward(self, x):
        with torch.no_grad():
            self.target(x)
        return self.predictor(self.online(x))


def test_a_momentum_network():
    model = Momentum()
    assert aloud(model) == []
    for pair in batches(*blobs()) * 2:
        train(model, [pair], epochs=1)
        for to, of in zip(model.target.parameters(), model.online.parameters(), strict=True):
            to.data = 0.99 * to.data + 0.01 * of.data
    model.zero_grad()
    assert aloud(model) == []
    assert aloud(model.eval()) == []


def test_copies_of_a_block():
    """Alike at the start, each with its own batches after it; the last not run yet."""
    model = with_body(*[copy.deepcopy(Residual()) for _ in range(3)])
    assert aloud(model) == []
    quiet_with_data(trained(model))
    model.add_module("spare", copy.deepcopy(with_body(Residual())[1]))
    assert aloud(model) == []


# recalibration and gammas that do not learn
def test_a_recalibrated_model():
    model = trained(small_net())
    model.zero_grad()
    torch.optim.swa_utils.update_bn(batches(*blobs())[:2], model)
    assert aloud(model) == []
    assert aloud(model.requires_grad_(False).train()) == []


def test_gammas_that_do_not_learn():
    model = small_net()
    for norm in (model[1], model[4]):
        norm.requires_grad_(False)
    train(model, batches(*blobs())[:2], epochs=1)
    model.zero_grad()
    assert aloud(model) == []
    without = with_body(nn.BatchNorm2d(8, affine=False), nn.ReLU())
    train(without, batches(*blobs())[:1], epochs=1)
    without.zero_grad()
    assert aloud(without) == []


def test_norms_of_each_domain():
    """One network, a set of norms a domain; the second's turn has not come."""

    class Domains(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 3, padding=1)
            self.norms = nn.ModuleList([nn.BatchNorm2d(8), nn.BatchNorm2d(8)])
            self.head = nn.Linear(8, 3)

        def forward(self, x, domain=0):
            return self.head(self.norms[domain](self.conv(x)).relu().mean((2, 3)))

    assert aloud(trained(Domains())) == []


# other kinds of modules
def test_lazy_layers():
    model = nn.Sequential(nn.LazyConv2d(8, 3), nn.LazyBatchNorm2d(), nn.ReLU(), nn.LazyLinear(3))
    assert aloud(model) == []


def test_a_model_without_storage():
    with torch.device("meta"):
        assert aloud(small_net()) == []


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_scripted_models():
    assert aloud(torch.jit.script(small_net())) == []
    assert aloud(torch.jit.trace(small_net().eval(), torch.randn(2, 3, 6, 6))) == []


def test_data_parallel_and_other_wrappers():
    assert aloud(nn.DataParallel(small_net())) == []
    assert aloud(torch.fx.symbolic_trace(small_net())) == []
    assert aloud(torch.optim.swa_utils.AveragedModel(small_net())) == []


@pytest.mark.slow
def test_a_compiled_and_an_exported_model():
    assert aloud(torch.compile(small_net(), backend="eager")) == []
    exported = torch.export.export(small_net().eval(), (torch.randn(2, 3, 6, 6),))
    assert aloud(exported.module()) == []


def test_our_own_fused_and_converted_models():
    assert aloud(sl.fuse(small_net())) == []
    for norm in ("ghost:16", "renorm", "group:4", "frozen"):
        assert aloud(sl.convert(trained(small_net()), norm=norm)) == []


# data that is only used to validate
def test_a_validation_loader_in_order_of_class():
    """40 classes, of which the batches that are read show the first ten."""
    x, y = blobs(1000, classes=40)
    torch.manual_seed(0)
    model = train(small_net(classes=40), batches(x, y, 50), epochs=3)
    order = y.argsort(stable=True)
    loader = DataLoader(TensorDataset(x[order], y[order]), batch_size=8)
    found = check(model.eval(), loader, select="SL305,SL306").findings
    assert [(each.rule, each.severity) for each in found] == [("SL305", "info")]
    assert "if training draws such batches" in found[0].message
    assert aloud(model, loader, ignore="SL301,SL316") == []


def pooled_net() -> nn.Sequential:
    """A norm with one value a sample."""
    torch.manual_seed(0)
    pool = nn.AdaptiveAvgPool2d(1), nn.Flatten()
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), *pool, nn.BatchNorm1d(8), nn.Linear(8, 3))


@pytest.mark.parametrize(("n", "size"), [(65, 32), (16, 2), (16, 1)])
def test_small_batches_of_a_model_that_is_only_validated(n, size):
    model = trained(pooled_net(), epochs=10).eval()
    assert aloud(model, DataLoader(TensorDataset(*blobs(n)), batch_size=size)) == []
    model.train()
    assert aloud(model, DataLoader(TensorDataset(*blobs(n)), batch_size=size)) != []


# series
class Mixer(nn.Module):
    """(N, 6 channels, 12 steps): a Linear layer over the steps, then a norm of the channels."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.time, self.norm, self.head = nn.Linear(12, 16), nn.BatchNorm1d(6), nn.Linear(96, 3)

    def forward(self, x):
        return self.head(self.norm(self.time(x).relu()).flatten(1))


def test_a_layer_that_mixes_the_steps_of_a_series():
    x = torch.randn(256, 6, 12, generator=torch.Generator().manual_seed(0)).cumsum(-1)
    x = x * torch.tensor([1.0, 2, 4, 8, 16, 32]).view(6, 1) + torch.arange(6.0).view(6, 1)
    model = train(Mixer(), batches(x, torch.arange(256) % 3), epochs=3)
    assert aloud(model) == []
    assert aloud(model, batches(x, torch.arange(256) % 3), ignore="SL301,SL316") == []
    assert aloud(nn.Sequential(nn.Conv1d(4, 10, 3), nn.Linear(12, 16), nn.BatchNorm1d(10))) == []


# zero scales at the end of a branch
@pytest.mark.parametrize(
    "add",
    [
        lambda x, y: torch.stack([x, y]).sum(0),
        lambda x, y: torch.stack([x, y], -1).mean(-1),
        lambda x, y: torch.lerp(x, y, 0.5),
        lambda x, y: torch.addcmul(x, x.sigmoid(), y),
        lambda x, y: x * (1 + y),
        lambda x, y: x + y.relu(),
        lambda x, y: x + F.gelu(y),
        lambda x, y: sum([y, x]),
        lambda x, y: x + torch.cumsum(y, 1),
    ],
    ids=["stack sum", "stack mean", "lerp", "addcmul", "scale", "relu", "gelu", "sum", "unknown"],
)
def test_zero_scales_at_what_is_a_sum_in_other_words(add):
    class Branch(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(8, 8, 1, bias=False), nn.BatchNorm2d(8)
            nn.init.zeros_(self.norm.weight)

        def forward(self, x):
            return add(x, self.norm(self.conv(x)))

    assert aloud(with_body(Branch(), nn.ReLU())) == []


def test_an_average_whose_statistics_lose_nothing():
    """They are its source's very numbers, and targets show that eval() is as good."""
    average, net = averaged()
    assert [each[:13] for each in aloud(average, reference=net)] == ["SL506 warning"]
    assert aloud(average, batches(*blobs()), reference=net, ignore="SL301") == []


@pytest.mark.parametrize("seed", range(4))
def test_steps_of_a_series_that_hardly_moves(seed):
    """Standardized channels, alike as steps are; what mixes them gives outputs of unlike scales."""
    torch.manual_seed(seed)
    x = torch.randn(128, 6, 1) + 0.05 * torch.randn(128, 6, 12)
    model = nn.Sequential(nn.Linear(12, 16), nn.BatchNorm1d(6))
    found = check(model, list(x.split(16)), select="SL309").findings
    assert [each.severity for each in found] == ["info"]
