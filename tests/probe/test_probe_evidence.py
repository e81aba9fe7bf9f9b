"""What is measured on batches, beside the same numbers from all data at once."""

from __future__ import annotations

import math
import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from by_hand import double
from torch import nn
from torch.nn import functional as F

from spiritlevel.errors import UsageError
from spiritlevel.lent.feeding import run_batch
from spiritlevel.nn import BatchNormAct2d, GhostBatchNorm2d
from spiritlevel.probe.batches_in import MOST_CALLS, repeated_at_end
from spiritlevel.probe.evidence import measure
from spiritlevel.probe.independence import Spread, f_tail


def net(channels: int = 5) -> nn.Sequential:
    """Two norms, the first with an in-place ReLU behind it, dropout between them."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, channels, 3, padding=1),
        nn.BatchNorm2d(channels),
        nn.ReLU(inplace=True),
        nn.Dropout(0.4),
        nn.Conv2d(channels, 4, 3),
        nn.BatchNorm2d(4, momentum=0.3),
        nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 3),
    ).double()
    for x in double(3, 6, 2, 7, 7, seed=5):
        model(2 * x + 1)
    return model.eval()


def pairs(sizes: tuple[int, ...] = (7, 4, 6)):
    x = double(sum(sizes), 2, 7, 7, seed=1) * 3 - 1
    y = torch.arange(len(x)) % 3
    return list(zip(x.split(sizes), y.split(sizes), strict=True))


def everything(model: nn.Module):
    """All that must not move, hooks and random states included."""
    return (
        {name: (id(t), t.clone()) for name, t in model.state_dict(keep_vars=True).items()},
        [(m.training, len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()],
        [(p.requires_grad, None if p.grad is None else p.grad.clone()) for p in model.parameters()],
        (torch.get_rng_state(), random.getstate(), str(np.random.get_state())),
        [sorted(vars(module)) for module in model.modules()],
    )


def assert_untouched(after, before):
    for name, (identity, value) in before[0].items():
        assert after[0][name][0] == identity, name
        assert torch.equal(after[0][name][1].nan_to_num(), value.nan_to_num()), name
    assert after[1] == before[1]
    for (needs, grad), (needed, held) in zip(after[2], before[2], strict=True):
        assert needs == needed
        assert (grad is None) == (held is None)
        assert grad is None or torch.equal(grad, held)
    assert torch.equal(after[3][0], before[3][0])
    assert after[3][1:] == before[3][1:]
    assert after[4] == before[4]


def inputs_of(model: nn.Module, layer: int, batches, *, training: bool) -> list[torch.Tensor]:
    """The input of one layer of `net`, batch by batch, with no hook, dropout left out."""
    found = []
    for x, _ in batches:
        for place, module in enumerate(model[:layer]):
            if isinstance(module, nn.BatchNorm2d):
                given = (None, None) if training else (module.running_mean, module.running_var)
                x = F.batch_norm(x, *given, module.weight, module.bias, training, eps=module.eps)
            elif not isinstance(module, nn.Dropout):
                x = F.relu(x) if place in (2, 6) else module(x)
        found.append(x.detach())
    return found


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("layer", [1, 5])
def test_moments_are_those_of_all_data_at_once(mode, layer):
    model = net()
    model[3].p = 0.0
    found = getattr(measure(model, pairs()).layers[str(layer)], mode)
    fed = inputs_of(model, layer, pairs(), training=mode == "train")
    whole = torch.cat([x.transpose(0, 1).flatten(1) for x in fed], 1)
    assert found.pooled.count == whole.shape[1]
    torch.testing.assert_close(found.pooled.mean, whole.mean(1))
    torch.testing.assert_close(found.pooled.var, whole.var(1, correction=0))
    torch.testing.assert_close(found.pooled.unbiased, whole.var(1))
    for place, x in enumerate(fed):
        torch.testing.assert_close(found.mean[place], x.mean((0, 2, 3)))
        torch.testing.assert_close(found.var[place], x.var((0, 2, 3), correction=0))
        assert found.counts[place] == found.values[place] == x.numel() // x.shape[1]
        means = x.mean((2, 3))
        torch.testing.assert_close(found.spread.mean[place], means.mean(0))
        squares = means.var(0, correction=0) * len(means)
        torch.testing.assert_close(found.spread.squares[place], squares)


def test_what_the_layer_holds_is_told_as_found():
    model = net()
    found = measure(model, pairs()).layers["5"]
    assert (found.momentum, found.eps, found.batches_tracked) == (0.3, 1e-5, 3)
    assert torch.equal(found.running_mean, model[5].running_mean)
    assert torch.equal(found.running_var, model[5].running_var)
    assert (found.kind, found.frozen, found.single) == ("BatchNorm2d", False, False)


def test_dropout_is_told_apart():
    torch.manual_seed(0)
    norm = nn.BatchNorm1d(200, affine=False)
    model = nn.Sequential(nn.Dropout(0.5), norm).double()
    x = double(64, 200) + 1
    on, off = measure(model, [x]).layers["1"].without_dropout
    torch.testing.assert_close(off.var, x.var(0, correction=0))
    # x times 0 or 2, by halves: E[2 x^2] - E[x]^2.
    expected = (2 * x.square().mean(0) - x.mean(0).square()).mean()
    assert float(on.var.mean()) == pytest.approx(float(expected), rel=0.05)


def test_each_batch_finds_the_running_statistics_as_they_were():
    """A second time the same batch has the same output in train, also where momentum is 1."""
    model = net()
    model[1].momentum = 1.0
    once = measure(model, pairs()[:1]).layers["5"].train
    twice = measure(model, pairs()[:1] * 2).layers["5"].train
    assert torch.equal(twice.mean, once.mean.expand(2, -1))


def test_calls_of_a_shared_layer_are_kept_apart():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm1d(3)

        def forward(self, x):
            return self.norm(self.norm(x) + 4)

    x = double(12, 3)
    found = measure(Twice().double(), [x[:5], x[5:]]).layers["norm"].train
    assert found.calls == 2
    torch.testing.assert_close(found.by_call[0].mean, x.mean(0))
    torch.testing.assert_close(found.by_call[1].mean, torch.full((3,), 4.0, dtype=torch.float64))
    assert found.pooled.count == 24
    torch.testing.assert_close(found.mean[0], (x[:5].mean(0) + 4) / 2)


def test_calls_past_the_most_that_are_kept_are_put_to_the_last():
    class Often(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm1d(3)

        def forward(self, x):
            for _ in range(MOST_CALLS + 3 if len(x) == 5 else 2):
                self.norm(x)
            return x

    x = double(9, 3)
    found = measure(Often().double(), [x[:5], x[5:]]).layers["norm"].train
    assert found.calls == MOST_CALLS + 3  # of the longest pass, which was not the last
    counts = [each.count for each in found.by_call]
    assert counts == [9, 9, *[5] * (MOST_CALLS - 3), 5 * 4]


def test_padding_is_left_out_of_the_second_moments():
    x = double(6, 2, 9)
    lengths = [9, 7, 3, 8, 5, 6]
    for row, length in zip(x, lengths, strict=True):
        row[:, length:] = 0.0
    assert repeated_at_end(x).tolist() == [0, 2, 6, 0, 4, 3]  # one alone repeats nothing
    found = measure(nn.Sequential(nn.BatchNorm1d(2)).double(), [x[:4], x[4:]]).layers["0"].train
    assert found.padding.share == pytest.approx(15 / 54)
    real = torch.cat([row[:, : 9 if n == 8 else n] for row, n in zip(x, lengths, strict=True)], 1)
    torch.testing.assert_close(found.padding.without.mean, real.mean(1))
    torch.testing.assert_close(found.padding.without.var, real.var(1, correction=0))


def test_a_constant_sequence_and_an_image_have_no_padding():
    assert repeated_at_end(torch.ones(2, 3, 5)).tolist() == [0, 0]
    model = nn.Sequential(nn.BatchNorm2d(2))
    assert measure(model, [torch.zeros(3, 2, 4, 4)]).layers["0"].train.padding is None


@pytest.mark.parametrize(("between", "within"), [(2, 5), (7, 248), (15, 64), (31, 992)])
def test_the_tail_of_fishers_f(between, within):
    """Beside the density of the beta distribution, summed by trapezoids."""
    a, b = within / 2, between / 2
    for ratio in (0.1, 0.9, 1.0, 2.5, 4.0):
        x = torch.linspace(0, within / (within + between * ratio), 100_001, dtype=torch.float64)
        density = ((a - 1) * x.log() + (b - 1) * torch.log1p(-x)).exp()
        density[0] = 0.0
        whole = math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)
        expected = float(torch.trapezoid(density, x)) / math.exp(whole)
        assert f_tail(ratio, between, within) == pytest.approx(expected, rel=1e-6)


def test_the_tail_of_fishers_f_as_tables_have_it():
    # The 5 % points of Abramowitz and Stegun, table 26.9.
    for ratio, between, within in [(4.96, 1, 10), (2.71, 5, 20), (2.17, 7, 60)]:
        assert f_tail(ratio, between, within) == pytest.approx(0.05, rel=0.01)
    assert f_tail(0.0, 3, 4) == 1
    assert f_tail(math.inf, 3, 4) == 0
    assert 0 < f_tail(1e4, 7, 248) < 1e-290


def test_the_variance_between_batches_by_hand():
    x = double(30, 2)
    parts = x.split([9, 9, 7, 5])
    spread = Spread(
        (9, 9, 7, 5),
        torch.stack([p.mean(0) for p in parts]),
        torch.stack([p.var(0, correction=0) * len(p) for p in parts]),
    )
    for channel in range(2):
        columns = [p[:, channel].tolist() for p in parts]
        grand = sum(map(sum, columns)) / 30
        means = [sum(c) / len(c) for c in columns]
        between = sum(len(c) * (m - grand) ** 2 for c, m in zip(columns, means, strict=True)) / 3
        within = sum((v - m) ** 2 for c, m in zip(columns, means, strict=True) for v in c) / 26
        assert float(spread.ratio[channel]) == pytest.approx(between / within)
        assert float(spread.within[channel]) == pytest.approx(within)
    largest = float(spread.ratio.max())
    assert spread.chance == pytest.approx(min(1.0, 2 * f_tail(largest, 3, 26)))


def test_chance_is_honest_on_random_batches():
    """Of 200 random draws about 5 % have p < 0.05 (a binomial at 200 stays below 24)."""
    generator = torch.Generator().manual_seed(3)
    small = 0
    for _ in range(200):
        x = torch.rand(8, 16, 1, generator=generator, dtype=torch.float64).exp()
        squares = x.var(1, correction=0) * 16
        small += Spread((16,) * 8, x.mean(1), squares).chance < 0.05
    assert 2 <= small <= 24


def test_a_dead_channel_does_not_spread():
    spread = Spread((4, 4), torch.full((2, 1), 0.1), torch.zeros(2, 1))
    assert spread.ratio.tolist() == [1.0]


# ---- what must not move --------------------------------------------------------------------------


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_left_as_it_was(training):
    model = net().train(training)
    model[1].eval()
    model(pairs()[0][0]).sum().backward()
    before = everything(model)
    measure(model, pairs())
    assert_untouched(everything(model), before)


class Breaks(nn.Module):
    """Raises in its third pass, after its buffer has moved."""

    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.zeros(1))
        self.passes = [0]

    def forward(self, x):
        self.seen.add_(1)
        self.passes[0] += 1
        if self.passes[0] == 3:
            raise ArithmeticError("in the middle")
        return x


def test_the_model_is_left_as_it_was_also_where_a_pass_raises():
    model = net()
    model.insert(5, Breaks())
    before = everything(model)
    with pytest.raises(UsageError) as raised:
        measure(model, pairs())
    assert_untouched(everything(model), before)
    assert model[5].passes == [0]
    assert str(raised.value) == (
        "'5' (Breaks) raised ArithmeticError, given (6, 4, 5, 5): in the middle. Batches are "
        "tensors, (input, ..., target) tuples or dicts of keywords; pass forward=lambda model, "
        "batch: ... for others"
    )


def test_the_innermost_module_that_raises_is_named():
    model = nn.Sequential(nn.Conv2d(2, 4, 1), nn.Sequential(nn.ReLU(), nn.Linear(9, 3)))
    with pytest.raises(UsageError, match=r"^'1\.1' \(Linear\) raised RuntimeError, given \(5, 4"):
        measure(model, [torch.randn(5, 2, 3, 3)])


def test_a_loader_is_read_no_further_and_its_random_states_stay():
    drawn = []

    def stream():
        for index in range(100):
            drawn.append(index)
            yield torch.randn(4, 2, 7, 7) + random.random() + np.random.rand()

    model = net().float()
    states = torch.get_rng_state(), random.getstate(), str(np.random.get_state())
    found = measure(model, stream(), most_batches=3)
    assert drawn == [0, 1, 2]
    assert not found.exhausted
    assert found.notes == ("measured on the first 3 batches: most_batches=3",)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (random.getstate(), str(np.random.get_state())) == states[1:]


def test_the_same_twice():
    one, two = (measure(net(), pairs()).layers["5"].train for _ in range(2))
    assert torch.equal(one.mean, two.mean)
    assert torch.equal(one.var, two.var)


# ---- what is fed ---------------------------------------------------------------------------------


class Named(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(3)

    def forward(self, x, shift=None, labels=None):
        out = self.norm(x if shift is None else x + shift)
        loss = None if labels is None else out.sum()
        return SimpleNamespace(loss=loss, logits=out)


def test_dicts_go_by_keywords():
    x, y = torch.randn(6, 3), torch.arange(6) % 3
    batch = {"x": x, "shift": torch.ones(6, 3), "labels": y}
    assert run_batch(Named(), batch).loss is not None
    found = measure(Named(), [batch])
    torch.testing.assert_close(found.layers["norm"].train.pooled.mean, (x + 1).mean(0).double())
    assert torch.equal(found.labels[0], y)


def test_forward_runs_what_is_none_of_these():
    found = measure(Named(), ["abc"], forward=lambda model, text: model(torch.randn(4, len(text))))
    assert found.layers["norm"].train.pooled.count == 4


def test_a_batch_is_not_written_to():
    x = torch.randn(4, 2)
    held = x.clone()
    measure(nn.Sequential(nn.ReLU(inplace=True), nn.BatchNorm1d(2)), [x])
    assert torch.equal(x, held)


@pytest.mark.parametrize(
    ("batches", "text"),
    [
        ([], "got no batches; wanted an iterable of at least one"),
        (torch.randn(3, 2), "got a Tensor as batches; wanted an iterable of batches: put a single"),
        ((torch.randn(3, 2), torch.arange(3)), "got a tuple of an input and a target as batches"),
        ({"x": torch.randn(3, 2)}, "got a dict as batches"),
        (7, "got a int as batches"),
    ],
)
def test_wrong_batches(batches, text):
    with pytest.raises(UsageError) as raised:
        measure(net(), batches)
    assert str(raised.value).startswith(text)


def test_lazy_layers_are_refused():
    with pytest.raises(UsageError, match=r"^got a model with lazy layers; run it once"):
        measure(nn.Sequential(nn.LazyBatchNorm1d()), [torch.randn(3, 2)])


# ---- kinds of models -----------------------------------------------------------------------------


def test_frozen_norms_stay_so():
    model = net().train()
    model[1].eval()
    found = measure(model, pairs())
    assert [layer.frozen for layer in found.layers.values()] == [True, False]
    expected = F.relu(model[1](model[0](torch.cat([x for x, _ in pairs()]))))
    on, off = found.layers["5"].without_dropout
    assert on.count == off.count
    whole = model[4](expected).detach().transpose(0, 1).flatten(1)
    torch.testing.assert_close(off.mean, whole.mean(1))


def test_a_model_for_inference_only_is_not_frozen():
    model = net().requires_grad_(False)
    assert not any(layer.frozen for layer in measure(model, pairs()).layers.values())


def test_a_model_without_norms():
    found = measure(nn.Sequential(nn.Linear(2, 3)), [torch.randn(4, 2)])
    assert found.layers == {}
    assert found.samples == 4


def test_one_value_a_channel_is_told_and_not_raised():
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.BatchNorm1d(3))
    found = measure(model, [torch.randn(4, 2), torch.randn(1, 2)])
    assert found.dropped == (1,)
    assert [layer.single for layer in found.layers.values()] == [True, False]
    assert found.layers["1"].train.batches == (0,)
    assert found.layers["1"].eval.batches == (0, 1)


def test_groups_of_ghost_norms_count_as_they_are():
    model = nn.Sequential(GhostBatchNorm2d(2, group_size=4))
    found = measure(model, [torch.randn(10, 2, 3, 3), torch.randn(3, 2, 3, 3)])
    assert found.layers["0"].train.values == (18, 27)
    assert found.layers["0"].eval.values == (90, 27)


def test_our_layers_are_read_before_their_activation():
    x = torch.randn(8, 2, 3, 3)
    found = measure(nn.Sequential(BatchNormAct2d(2)), [x])
    torch.testing.assert_close(found.layers["0"].train.pooled.mean, x.double().mean((0, 2, 3)))


def test_the_first_norm_that_is_fed_nan_is_named():
    model = nn.Sequential(nn.LayerNorm(3), nn.BatchNorm1d(3), nn.BatchNorm1d(3))
    x = torch.randn(6, 3)
    bad = x.clone()
    bad[2, 1] = float("inf")
    found = measure(model, [x, bad])
    first = found.nonfinite[0]
    assert (first.path, first.batch, first.values, first.given) == ("0", 1, 1, True)
    assert found.layers["1"].train.batches == (0,)


def test_a_tensor_with_features_last_is_followed_through_activations():
    class Wrong(nn.Module):
        def __init__(self, transpose):
            super().__init__()
            self.linear, self.act, self.norm = nn.Linear(3, 5), nn.ReLU(), nn.BatchNorm1d(5)
            self.transpose = transpose

        def forward(self, x):
            x = self.act(self.linear(x))
            return self.norm(x.transpose(1, 2) if self.transpose else x)

    x = [torch.randn(4, 5, 3)]
    assert measure(Wrong(False), x).layers["norm"].features_last.source == "linear"
    assert measure(Wrong(True), x).layers["norm"].features_last is None


def test_who_depends_on_batch_mates():
    held = measure(net(), pairs()).mates
    assert not held.depends
    model = net()
    model[5].track_running_stats = False
    model[5].running_mean = model[5].running_var = None
    found = measure(model, pairs()).mates
    assert found.depends
    assert found.module == "5"
    assert found.samples == 3


def test_noise_alone_is_no_dependence():
    class Noisy(nn.Module):
        def forward(self, x):
            return F.dropout(x, 0.5)  # always on

    assert not measure(nn.Sequential(Noisy()), [torch.randn(8, 3)]).mates.depends


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_float32_batches_are_fed_in_the_models_type(dtype):
    model = nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3)).to(dtype)
    found = measure(model, [torch.randn(4, 2, 3, 3)]).layers["1"]
    assert found.dtype == dtype
    assert found.train.mean.dtype == torch.float64


def test_sync_batch_norms_ask_no_other_process(tmp_path):
    dist = torch.distributed
    model = nn.SyncBatchNorm.convert_sync_batchnorm(net())
    plain = measure(net(), pairs()).layers["5"].train
    store = f"file://{tmp_path}/store"
    dist.init_process_group("gloo", init_method=store, rank=0, world_size=1)
    try:
        before = everything(model)
        found = measure(model, pairs()).layers["5"].train
        assert_untouched(everything(model), before)
    finally:
        dist.destroy_process_group()
    torch.testing.assert_close(found.mean, plain.mean)


def test_an_output_that_changes_by_itself_tells_nothing_of_batch_mates():
    class Grows(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm1d(3)

        def forward(self, x):
            self.norm.weight.data.mul_(1.5)
            return self.norm(x)

    model = Grows()
    assert measure(model, [torch.randn(8, 3)]).mates is None
    assert model.norm.weight.tolist() == [1, 1, 1]


def test_a_scripted_model_is_run_as_it_is():
    with pytest.warns(DeprecationWarning, match="torch.jit.script"):
        model = torch.jit.script(nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)))
    found = measure(model, [torch.randn(8, 3)])
    assert found.layers == {}
    assert not found.mates.depends


def test_a_norm_that_is_not_reached_is_told():
    model = nn.Sequential(nn.Linear(3, 2))
    model[0].spare = nn.BatchNorm1d(2)
    found = measure(model, [torch.randn(8, 3)])
    assert [layer.called for layer in found.layers.values()] == [False]
    assert found.notes == ("batch norms that these batches do not reach: 0.spare",)
