"""Batches that are read again: the same in each pass, or refused, or without accuracy."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from recalibrate_cases import assert_statistics, everything, images, moments, net, pairs
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, TensorDataset

import spiritlevel as sl
from spiritlevel.errors import UsageError
from spiritlevel.surgery.reading import Reading


def data():
    return TensorDataset(images(), torch.arange(17) % 3)


def of_loader(g):
    return DataLoader(data(), 6, shuffle=True, drop_last=True, generator=g)


def of_sampler(g):
    sampler = RandomSampler(data(), generator=g)
    return DataLoader(data(), 6, sampler=sampler, drop_last=True)


def of_batch_sampler(g):
    sampler = BatchSampler(RandomSampler(data(), generator=g), 6, drop_last=True)
    return DataLoader(data(), batch_sampler=sampler)


@pytest.mark.parametrize("sequential", [False, True])
@pytest.mark.parametrize("make", [of_loader, of_sampler, of_batch_sampler])
def test_a_generator_of_the_loaders(make, sequential):
    g = torch.Generator().manual_seed(3)
    model, before = net(), g.get_state()
    sl.recalibrate(model, make(g), sequential=sequential)
    assert torch.equal(g.get_state(), before)
    expected = list(make(g))
    g.set_state(before)
    beside = sl.recalibrate(net(), expected, sequential=sequential)
    for place in (1, 5):
        assert_statistics(model[place], (beside[place].running_mean, beside[place].running_var))
    assert model.spiritlevel_log == beside.spiritlevel_log  # accuracy, too


class Draws:
    """Fifteen of all samples, chosen by a generator of its own."""

    def __init__(self, own, choose):
        self.own, self.choose = own, choose

    def __iter__(self):
        rows = torch.tensor([self.choose(self.own) for _ in range(15)])
        yield from zip(images()[rows].split(8), (rows % 3).split(8), strict=True)


CHOICES = {
    "numpy": (lambda: np.random.default_rng(0), lambda own: int(own.integers(17))),
    "numpy, old": (lambda: np.random.RandomState(0), lambda own: int(own.randint(17))),
    "python": (lambda: random.Random(0), lambda own: own.randrange(17)),
}


@pytest.mark.parametrize("name", CHOICES)
def test_a_generator_of_the_iterables(name):
    make, choose = CHOICES[name]
    batches = Draws(make(), choose)
    model = sl.recalibrate(net(), batches, sequential=True)
    expected = list(batches)  # its generator stands where it stood
    beside = sl.recalibrate(net(), expected, sequential=True)
    assert model.spiritlevel_log == beside.spiritlevel_log
    assert_statistics(model[5], (beside[5].running_mean, beside[5].running_var))


def test_a_generator_of_the_data_sets():
    class Augmented(torch.utils.data.Dataset):
        own = None

        def __len__(self):
            return 17

        def __getitem__(self, index):
            return images()[index] + self.own.normal(), index % 3

    data = Augmented()
    data.own = np.random.default_rng(0)
    loader = DataLoader(torch.utils.data.Subset(data, range(9)), 4, shuffle=True)
    before = data.own.bit_generator.state
    assert sl.recalibrate(net(), loader, sequential=True).spiritlevel_log[0].samples == 9
    assert data.own.bit_generator.state == before


class Hidden(Draws):
    """Its generator cannot be found."""

    def __init__(self):
        own = np.random.default_rng(0)
        super().__init__([lambda: int(own.integers(17))], lambda held: held[0]())


def fewer():
    held = pairs()

    class Fewer:
        def __iter__(self):
            if len(held) > 1:
                held.pop()
            return iter(list(held))

    return Fewer()


class OnlyOnce:
    """Looks as if it could be read again."""

    def __init__(self):
        self.rest = iter(pairs())

    def __iter__(self):
        return self.rest


OTHERS = {"other samples": Hidden, "fewer batches": fewer, "only once": OnlyOnce}


@pytest.mark.parametrize("name", OTHERS)
def test_others_are_refused_where_layers_would_see_other_data(name):
    model = net()
    before = everything(model)
    with pytest.raises(
        UsageError, match=r"^got other batches when they were read again: \d with val"
    ):
        sl.recalibrate(model, OTHERS[name](), sequential=True)
    assert everything(model) == before


@pytest.mark.parametrize("name", OTHERS)
def test_others_have_no_accuracy(name):
    model = sl.recalibrate(net(), OTHERS[name]())
    whole = model.spiritlevel_log[0]
    assert (whole.metric, whole.before, whole.after) == (None, None, None)
    assert whole.why.endswith("; accuracy needs batches that can be read again")
    if name == "only once":
        assert_statistics(model[1], moments(model[0](images())))


def test_another_order_is_the_same_data():
    held = [(x / 3, y) for x, y in pairs((1,) * 17)]

    class Turns:
        def __iter__(self):
            held.append(held.pop(0))
            return iter(list(held))

    model = sl.recalibrate(net(), Turns(), sequential=True)
    assert_statistics(model[1], moments(model[0](images() / 3)))
    assert model.spiritlevel_log[0].samples == 17


def test_targets_that_are_not_finite_come_again_as_well():
    batches = [(x, torch.full((len(x), 3), float("nan")).double()) for x, _ in pairs()]
    summary, *layers = sl.recalibrate(net(), batches, sequential=True).spiritlevel_log
    assert summary.sequential
    assert [entry.action for entry in layers] == ["recalibrated"] * len(layers)
    assert layers


def test_a_forward_that_gives_a_layer_more_the_second_time():
    count = [0]

    def forward(model, batch):
        count[0] += 1
        return model(batch[0][: 4 + (count[0] > 3)])

    with pytest.raises(UsageError, match=r"^got another number of values for '1' when the same "):
        sl.recalibrate(net(), pairs(), sequential=True, forward=forward)


def test_one_batch_one_call_one_sample():
    model = nn.Sequential(nn.BatchNorm2d(2).double(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    sl.recalibrate(model, pairs((1,)))
    whole, layer = model.spiritlevel_log
    assert "; 1 batch; accuracy" in str(whole)
    assert str(whole).endswith("in eval() on 1 sample")
    assert str(layer).endswith("; 49 values a channel in 1 call")


@pytest.mark.parametrize(
    "dtype",
    [
        *(torch.bool, torch.uint8, torch.int8, torch.int64, torch.uint16),
        *(torch.float8_e4m3fn, torch.float16, torch.bfloat16, torch.float64, torch.complex64),
    ],
)
def test_a_reading_of_any_type_tells_others_from_the_same(dtype):
    def read(values):
        found = Reading()
        for batch in values:
            found.add({"x": batch, "empty": batch[:0], "sparse": torch.eye(2).to_sparse()})
        return found

    x = torch.tensor([[0.0, 1.0, 1.0], [1.0, 0.0, 0.0]]).to(dtype)
    other = torch.tensor([[0.0, 1.0, 1.0], [1.0, 0.0, 1.0]]).to(dtype)
    assert read([x, other]).same(read([other, x]))
    assert not read([x, x]).same(read([x, other]))
    assert not read([x]).same(read([x, x[:0]]))
