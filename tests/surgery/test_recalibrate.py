"""Statistics beside those of all data at once, in float64."""

from __future__ import annotations

import copy
import random

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from recalibrate_cases import assert_statistics, held, images, moments, net, normalized, pairs
from sklearn.datasets import load_digits
from torch import nn

import spiritlevel as sl
from spiritlevel.nn import BatchNormAct2d, GhostBatchNorm2d
from spiritlevel.surgery import Recalibrated, Recalibration


def test_the_first_layer_has_the_statistics_of_all_its_inputs():
    model = net()
    assert sl.recalibrate(model, pairs()) is model
    assert_statistics(model[1], moments(model[0](images())))


def test_all_at_once_a_layer_divides_by_the_batch_meanwhile():
    model = net()
    sl.recalibrate(model, pairs())
    fed = [model[4](normalized(model[1], model[0](x)).relu()) for x, _ in pairs()]
    assert_statistics(model[5], moments(torch.cat(fed)))


def test_in_order_each_layer_has_what_it_sees_in_eval():
    model = net()
    sl.recalibrate(model, pairs(), sequential=True)
    first = moments(model[0](images()))
    assert_statistics(model[1], first)
    x = normalized(model[1], model[0](images()), first).relu()
    assert_statistics(model[5], moments(model[4](x)))
    whole, *_ = model.spiritlevel_log
    assert whole.why.startswith("one layer after another, in the order below")


@pytest.mark.parametrize("sequential", [False, True])
def test_the_order_is_that_of_the_calls(sequential):
    class Backwards(nn.Module):
        def __init__(self):
            super().__init__()
            self.last, self.first = nn.BatchNorm1d(3), nn.BatchNorm1d(3)

        def forward(self, x):
            return self.last(self.first(x) * 2)

    model = sl.recalibrate(Backwards(), [torch.randn(9, 3)], sequential=sequential)
    assert [e.paths for e in model.spiritlevel_log[1:]] == [("first",), ("last",)]
    if sequential:
        assert model.last.running_var.sub(4).abs().max() < 1e-3


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=8), st.booleans())
def test_any_split_gives_the_same(sizes, sequential):
    x, (whole, split) = images(sum(sizes)), (net(), net())
    sl.recalibrate(whole, [x], sequential=sequential, accuracy=False)
    sl.recalibrate(split, x.split(sizes), sequential=sequential, accuracy=False)
    for place in (1, 5) if sequential else (1,):
        assert_statistics(split[place], held(whole[place]))


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.integers(1, 5), min_size=2, max_size=8),
    st.integers(1, 4),
    st.sampled_from([0.0, 1.0, 100.0, 1e6]),
    st.sampled_from([1e-3, 1.0, 1e3]),
)
@example([1, 1], 4, 1e6, 1e-3)
@example([1, 1, 4, 5, 5], 2, 0.0, 1.0)
def test_any_split_beside_all_data_at_once(sizes, channels, mean, std):
    torch.manual_seed(sum(sizes))
    x = torch.randn(sum(sizes), channels, 3, dtype=torch.float64) * std + mean
    norm = nn.BatchNorm1d(channels, affine=False).double()
    sl.recalibrate(norm, x.split(sizes))
    # Means of batches, 1e9 deviations away at most, are known to 1e-7 deviations.
    expected, near = moments(x - mean), 1e-14 * std  # of a mean that is nearly 0
    torch.testing.assert_close(norm.running_mean, expected[0] + mean, rtol=1e-12, atol=near)
    torch.testing.assert_close(norm.running_var, expected[1], rtol=1e-7, atol=0)


@pytest.mark.parametrize("sequential", [False, True])
def test_single_values_count_as_they_are(sequential):
    x = torch.randn(7, 3, dtype=torch.float64) + 2
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 2), nn.BatchNorm1d(2)).double()
    sl.recalibrate(model, x.split((1, 4, 1, 1)), sequential=sequential)
    assert_statistics(model[0], moments(x))
    if sequential:
        first = normalized(model[0], x, moments(x))
        assert_statistics(model[2], moments(model[1](first)))
    else:  # of a single value its layer knows no deviation but that of all before it
        fed, seen = [], []
        for part in x.split((1, 4, 1, 1)):
            seen.append(part)
            so_far = torch.cat(seen if len(part) == 1 else [part])
            given = so_far.mean(0), so_far.var(0, correction=0)
            fed.append(model[1](normalized(model[0], part, given)))
        assert_statistics(model[2], moments(torch.cat(fed)))


class Twice(nn.Module):
    """One norm, called twice a pass, on inputs that are unlike."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(2, dtype=torch.float64)

    def forward(self, x):
        return self.norm(x) + self.norm(3 * x + 1)


@pytest.mark.parametrize("sequential", [False, True])
def test_all_calls_of_a_layer_count(sequential):
    x = torch.randn(9, 2, dtype=torch.float64)
    model = sl.recalibrate(Twice(), x.split(4), sequential=sequential)
    assert_statistics(model.norm, moments(torch.cat([x, 3 * x + 1])))
    assert model.norm.num_batches_tracked == 6
    assert model.spiritlevel_log[1].calls == 6


def test_a_layer_called_again_behind_its_own_output_divides_by_the_batch():
    class Again(Twice):
        def forward(self, x):
            return self.norm(2 * self.norm(x) + 1)

    x = torch.randn(8, 2, dtype=torch.float64)
    model = sl.recalibrate(Again(), x.split(4), sequential=True)
    again = [2 * normalized(model.norm, part) + 1 for part in x.split(4)]
    assert_statistics(model.norm, moments(torch.cat([x, *again])))


# ---- kinds of norms ------------------------------------------------------------------------------


def with_norm(make) -> nn.Sequential:
    """`net` with others of its norms, which have the same weights."""
    model = net()
    for place in (1, 5):
        old, new = model[place], make(model[place].num_features).double()
        new.load_state_dict(old.state_dict())
        model[place] = new
    return model.eval()


@pytest.mark.parametrize("sequential", [False, True])
@pytest.mark.parametrize(
    "make",
    [
        sl.nn.BatchNorm2d,
        lambda c: BatchNormAct2d(c, act="identity"),
        lambda c: GhostBatchNorm2d(c, 2),
        sl.nn.NoisyBatchNorm2d,
        lambda c: sl.nn.BatchRenorm2d(c, warmup=0),
        nn.SyncBatchNorm,
        lambda c: sl.nn.SyncBatchNorm(c, act="identity"),
        lambda c: nn.BatchNorm2d(c, momentum=None),
        lambda c: nn.BatchNorm2d(c, momentum=0.0),
    ],
)
def test_every_kind_gets_the_same(make, sequential):
    plain = sl.recalibrate(net(), pairs(), sequential=sequential)
    other = sl.recalibrate(with_norm(make), pairs(), sequential=sequential)
    for place in (1, 5):
        assert_statistics(other[place], held(plain[place]))
    assert type(other[1]) is type(with_norm(make)[1])


def test_the_counter_is_the_number_of_calls_but_where_bounds_grow_by_it():
    model = with_norm(lambda c: sl.nn.BatchRenorm2d(c, warmup=10))
    sl.recalibrate(model, pairs())
    assert model[1].num_batches_tracked == 1000
    average = with_norm(lambda c: nn.BatchNorm2d(c, momentum=None)).train()
    sl.recalibrate(average, pairs())
    assert average[1].num_batches_tracked == 3
    was = average[1].running_mean.clone()
    fresh = moments(average[0](images()))[0]
    average(images())  # the average goes on: one part in four
    torch.testing.assert_close(average[1].running_mean, 0.75 * was + 0.25 * fresh)


def test_a_fused_layer_with_a_residual():
    class Adds(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.next = BatchNormAct2d(2, "relu").double(), nn.BatchNorm2d(2).double()

        def forward(self, x):
            return self.next(self.norm(x, 2 * x))

    model = sl.recalibrate(Adds(), [images()], sequential=True)
    assert_statistics(model.norm, moments(images()))
    y = (normalized(model.norm, images(), moments(images())) + 2 * images()).relu()
    assert_statistics(model.next, moments(y))


@pytest.mark.parametrize("name", ["ghostnet_050", "small_resnet"])
def test_fused_and_plain_networks_agree(name):
    torch.manual_seed(0)
    plain = sl.create_model(name, num_classes=3).double().eval()
    fused = sl.fuse(copy.deepcopy(plain))
    x = torch.randn(8, 3, 32, 32, dtype=torch.float64)
    for model in (plain, fused):
        sl.recalibrate(model, x.split(5), accuracy=False)
    for (key, one), other in zip(
        plain.state_dict().items(), fused.state_dict().values(), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-9, msg=key)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_halves_keep_their_type(dtype):
    model = nn.Sequential(nn.BatchNorm2d(2), nn.ReLU(), nn.BatchNorm2d(2)).to(dtype)
    sl.recalibrate(model, [images().float()])
    assert model[0].running_mean.dtype == dtype
    assert_statistics(model[0], moments(images().to(dtype)), rtol=1e-2)


def test_channels_last_and_strides():
    x = images().to(memory_format=torch.channels_last)
    one = sl.recalibrate(net(), [x[::2], x[1::2]])
    assert_statistics(one[1], moments(one[0](images())))


# ---- batches -------------------------------------------------------------------------------------


@pytest.mark.parametrize("sequential", [False, True])
def test_a_generator(sequential):
    one = sl.recalibrate(net(), (pair for pair in pairs()), sequential=sequential)
    two = sl.recalibrate(net(), pairs(), sequential=sequential)
    for place in (1, 5):
        assert all(map(torch.equal, held(one[place]), held(two[place])))
    whole = one.spiritlevel_log[0]
    assert (whole.metric is None) == (not sequential)
    assert whole.why.endswith("accuracy needs batches that can be read again") == (not sequential)


def test_a_generator_is_not_held():
    alive, most = [], []

    class Watched(torch.Tensor):
        pass

    def stream():
        import gc
        import weakref

        for _ in range(5):
            x = images(4).as_subclass(Watched)
            alive.append(weakref.ref(x))
            yield x
            del x
            gc.collect()
            most.append(sum(each() is not None for each in alive))

    sl.recalibrate(net(), stream())
    assert max(most) <= 1


def test_a_loader_that_shuffles_and_augments_gives_each_pass_the_same():
    class Noisy(torch.utils.data.Dataset):
        seen: list[float] = []  # noqa: RUF012

        def __len__(self):
            return 9

        def __getitem__(self, index):
            x = images(9)[index] + torch.randn(1) + random.random() + np.random.rand()
            self.seen.append(float(x.sum()))
            return x, index % 3

    data = Noisy()
    loader = torch.utils.data.DataLoader(data, 4, shuffle=True)
    model = sl.recalibrate(net(), loader, sequential=True)
    passes = [data.seen[at : at + 9] for at in range(0, len(data.seen), 9)]
    assert len(passes) == 5  # order, two layers, before and after
    assert all(each == passes[0] for each in passes)
    assert len(set(passes[0])) == 9
    assert model.spiritlevel_log[0].batches == 3


def test_dicts_and_forward():
    named = [{"x": x, "labels": y} for x, y in pairs()]
    model = sl.recalibrate(net(), named, forward=lambda model, batch: model(batch["x"]))
    assert_statistics(model[1], moments(model[0](images())))
    assert model.spiritlevel_log[0].metric == "accuracy"


# ---- what is told --------------------------------------------------------------------------------


def test_each_layer_tells_how_far_it_moved():
    model, old = net(), net()
    sl.recalibrate(model, pairs())
    whole, *layers = model.spiritlevel_log
    assert isinstance(whole, Recalibration)
    assert (whole.batches, whole.sequential) == (3, False)
    for entry, place in zip(layers, (1, 5), strict=True):
        assert isinstance(entry, Recalibrated)
        assert (entry.action, entry.paths) == ("recalibrated", (str(place),))
        norm, was = model[place], old[place]
        deviation = (was.running_var + was.eps).sqrt()
        shift = ((norm.running_mean - was.running_mean) / deviation).abs().max()
        factor = (norm.running_var + norm.eps) / (was.running_var + was.eps)
        assert entry.mean_shift == pytest.approx(float(shift))
        assert entry.var_factor == pytest.approx((float(factor.min()), float(factor.max())))
        assert (entry.values, entry.calls) == (17 * (49 if place == 1 else 25), 3)
        assert str(entry) == (
            f"recalibrated {place}: mean moved by up to {float(shift):.3g} standard deviations, "
            f"variance times {float(factor.min()):.3g} to {float(factor.max()):.3g}; "
            f"{entry.values:,} values a channel in 3 calls"
        )


def test_accuracy_before_and_after_in_eval():
    model, x = net(), images()
    y = net(3).eval()(x).argmax(1)
    before = float((model(x).argmax(1) == y).double().mean())
    sl.recalibrate(model.train(), list(zip(x.split(5), y.split(5), strict=True)))
    after = float((model.eval()(x).argmax(1) == y).double().mean())
    whole = model.spiritlevel_log[0]
    assert (whole.metric, whole.samples) == ("accuracy", 17)
    assert (whole.before, whole.after) == (pytest.approx(before), pytest.approx(after))
    assert whole.why.endswith(f"accuracy {before:.4g} -> {after:.4g} in eval() on 17 samples")


@pytest.mark.parametrize("sequential", [False, True])
def test_a_trained_net_gets_back_the_statistics_that_it_has_lost(sequential):
    """Real digits."""
    digits = load_digits()
    x = torch.tensor(digits.images[:, None], dtype=torch.float32) / 16
    y = torch.tensor(digits.target)
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(1, 16, 3), nn.BatchNorm2d(16), nn.ReLU()),
        *(nn.Conv2d(16, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten(), nn.Linear(256, 10)),
    )
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    for _ in range(60):
        rows = torch.randint(1200, (64,))
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
        optimizer.step()
    model[1].reset_running_stats()
    model[4].reset_running_stats()
    train = list(zip(x[:1200].split(100), y[:1200].split(100), strict=True))
    sl.recalibrate(model, train, sequential=sequential)
    whole = model.spiritlevel_log[0]
    assert whole.before < 0.8
    assert whole.after > 0.97
    assert (model.eval()(x[1200:]).argmax(1) == y[1200:]).double().mean() > 0.9


def test_passes_that_accuracy_costs():
    drawn = []

    class Counted(list):
        def __iter__(self):
            drawn.append(self)
            return super().__iter__()

    def passes(batches, **options):
        drawn.clear()
        sl.recalibrate(net(), Counted(batches), **options)
        return len(drawn)

    assert passes(pairs()) == 3
    assert passes(pairs(), accuracy=False) == 1
    assert passes(pairs(), accuracy=False, sequential=True) == 3
    assert passes([x for x, _ in pairs()]) == 2  # the first batch shows that there are no targets


def test_samples_of_which_no_class_is_given_are_left_out():
    (x, y), *others = pairs()
    model = sl.recalibrate(net(), [(x, y.masked_fill(y == 0, -100)), *others])
    assert model.spiritlevel_log[0].samples == 17 - 3
    assert 0 <= model.spiritlevel_log[0].after <= 1


def test_a_pass_of_one_layer_ends_behind_it():
    model, ran = net(), []
    for place in (4, 9):
        model[place].register_forward_hook(lambda *_, place=place: ran.append(place))
    sl.recalibrate(model, pairs(), sequential=True, accuracy=False)
    assert ran == [4, 9] * 3 + [4] * 3  # to find the order; layer 1 ends before both; layer 5


def test_float_targets_give_the_squared_error():
    batches = [(x, torch.ones(len(x), 3, dtype=torch.float64)) for x, _ in pairs()]
    before = float((net()(images()).detach() - 1).square().mean())
    model = sl.recalibrate(net(), batches)
    whole = model.spiritlevel_log[0]
    assert whole.metric == "mean squared error"
    assert whole.before == pytest.approx(before)
    assert whole.after == pytest.approx(float((model(images()).detach() - 1).square().mean()))


def test_statistics_that_were_not_finite_are_put_right():
    model = net()
    model[1].running_mean.fill_(float("nan"))
    model[5].running_var.fill_(-1.0)
    sl.recalibrate(model, pairs(), sequential=True)
    assert model(images()).isfinite().all()
    assert model.spiritlevel_log[1].mean_shift == float("inf")
