"""The rules on data where a bug and its twin do not show it: severities, thin evidence, silence."""

from __future__ import annotations

import pytest
import torch
from case_book import batches, blobs, small_net, train
from cases_statistics import few, pooled_first, seasons, settled, synchronized
from torch import nn
from torch.utils.data import DataLoader, Dataset, DistributedSampler, IterableDataset, TensorDataset

import spiritlevel as sl
from spiritlevel.doctor.case import Case
from spiritlevel.doctor.check import RULES, check
from spiritlevel.doctor.loader import Loader
from spiritlevel.nn import GhostBatchNorm1d


def told(model, given, rule):
    return [found for found in check(model, given, select="SL3").findings if found.rule == rule]


def test_the_initial_values_of_a_young_average_are_info():
    """Three batches at momentum 0.1: 73 % of the running statistics are still 0 and 1."""
    model, inputs = small_net(), [2 * x + 9 for x, _ in few()]
    for x in inputs[:3]:
        model(x)
    found = told(model, inputs, "SL301")
    assert {each.severity for each in found} == {"info"}
    assert (
        "72.9% of it is the initial value: 197 more training batches settle it" in found[0].message
    )


def test_what_no_lag_explains_is_a_warning_in_a_young_model_too():
    model = train(small_net(), few(), epochs=1)
    found = told(model, [x * 255 for x, _ in few()], "SL301")
    assert ("1", "warning") in [(each.module, each.severity) for each in found]


def test_the_factor_of_an_unbiased_variance_is_no_finding():
    """Batches of 4 values: torch keeps the unbiased variance, 4/3 of what normalizes."""
    model = nn.Sequential(nn.BatchNorm1d(4, momentum=0.5))
    parts = list(torch.randn(64, 4, generator=torch.Generator().manual_seed(0)).split(4))
    for x in parts * 3:
        model(x)
    assert told(model, parts, "SL301") == []


def test_a_layer_frozen_on_other_data_is_meant():
    model = settled()
    for layer in (model[1], model[4]):
        layer.eval().requires_grad_(False)
    assert told(model, [x * 255 for x, _ in few()], "SL301") == []


def test_targets_without_a_gap_make_it_info():
    """One class of weights only: whatever the statistics, the answer is the same."""
    model = settled()
    with torch.no_grad():
        model[8].weight.zero_()
        model[8].bias.copy_(torch.tensor([5.0, 0.0, 0.0]))
    found = told(model, [(x * 255, y) for x, y in few()], "SL301")
    assert {each.severity for each in found} == {"info"}
    assert "eval mode loses nothing" in found[0].message


# ---- batches -------------------------------------------------------------------------------------


def test_few_batches_in_order_say_how_many_more_would_decide():
    x, y = seasons()
    order = y.argsort(stable=True)
    found = told(small_net(), batches(x[order], y[order], 64)[:4], "SL305")
    assert [each.severity for each in found] == ["info"]
    assert "4 more batches would decide" in found[0].message


def test_an_ordered_test_set_of_a_model_that_trained_shuffled_is_info():
    x, y = blobs()
    model = train(small_net(), batches(x, y), epochs=2)
    with torch.no_grad():
        for part in x.split(32) * 4:
            model(part)
    order = y.argsort(stable=True)
    (found,) = told(model, batches(x[order], y[order]), "SL305")
    assert found.severity == "info"
    assert "if training draws such batches, shuffle them" in found.message


def test_two_classes_that_take_turns_are_told_once():
    x, y = seasons()
    order = torch.cat([(y == 0).nonzero()[:, 0], (y == 2).nonzero()[:, 0]])
    one, other = x[order[:80]], x[order[-80:]]
    parts = [each for pair in zip(one.split(16), other.split(16), strict=True) for each in pair]
    labelled = [(part, torch.full((16,), 2 * (i % 2))) for i, part in enumerate(parts)]
    rules = [f.rule for f in check(small_net(), labelled, select="SL305,SL306").findings]
    assert rules == ["SL305"]
    rules = [f.rule for f in check(small_net(), parts, select="SL305,SL306").findings]
    assert rules == ["SL306"]


@pytest.mark.parametrize("seed", range(6))
def test_random_batches_are_never_ordered(seed):
    """Skewed samples, small batches."""
    x = torch.rand(128, 2, 3, 3, generator=torch.Generator().manual_seed(seed)).pow(6)
    found = check(nn.Sequential(nn.BatchNorm2d(2)), list(x.split(4)), select="SL305,SL306")
    assert found.findings == ()


# ---- values --------------------------------------------------------------------------------------


def test_a_batch_of_one_among_others_is_told_as_it_raises():
    x, y = blobs(64)
    found = told(pooled_first(), [(x[:32], y[:32]), (x[:1], y[:1]), (x[32:], y[32:])], "SL303")
    assert [(each.module, each.severity, each.evidence["values"]) for each in found] == [
        ("4", "error", 1)
    ]


def test_a_last_batch_of_one_in_a_list():
    x, y = blobs(33)
    found = told(pooled_first(), batches(x, y, 32), "SL304")
    assert [(each.module, each.severity) for each in found] == [("4", "error")]
    assert told(pooled_first(), batches(x, y, 32), "SL303") == []


def test_one_image_with_positions_enough_is_no_finding():
    x, y = blobs(33)
    assert told(small_net(), batches(x, y, 32), "SL304") == []


def test_a_ghost_group_of_one_is_seen_before_the_last_batch_comes():
    model = nn.Sequential(nn.Flatten(), GhostBatchNorm1d(108, group_size=16))
    loader = DataLoader(TensorDataset(*blobs(32 * 3 + 17)), batch_size=32)
    (found,) = told(model, loader, "SL304")
    assert (found.module, found.evidence["last"], found.evidence["values"]) == ("1", 17, 1)


def test_many_samples_of_one_value_are_enough():
    x, y = blobs(64)
    assert told(pooled_first(), batches(x, y, 32), "SL303") == []


# ---- sharing -------------------------------------------------------------------------------------


def test_calls_on_the_same_distribution_are_no_finding():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm2d(3)

        def forward(self, x):
            return self.norm(x) + self.norm(x.flip(0))

    assert told(Twice(), [x for x, _ in few()], "SL307") == []


@pytest.mark.parametrize(
    "options",
    [{"drop_last": True}, {"sampler": DistributedSampler(range(250), num_replicas=2, rank=0)}],
)
def test_synchronized_norms_with_even_batches_are_no_finding(options):
    loader = DataLoader(TensorDataset(*blobs(250)), batch_size=16, **options)
    assert told(synchronized(), loader, "SL314") == []


def test_ours_are_synchronized_norms_too():
    model = sl.convert(synchronized(), "sync")
    told_of = [told(model, DataLoader(TensorDataset(*blobs(250)), batch_size=16), "SL314")]
    told_of.append(told(model, [x for x, _ in few()], "SL307"))
    assert [len(each) for each in told_of] == [1, 0]


def test_uneven_batches_are_a_warning_where_several_processes_run(monkeypatch):
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    case = Case(synchronized(), loader=Loader.of(DataLoader(TensorDataset(*blobs(250)), 16)))
    assert [each.severity for each in RULES["SL314"](case)] == ["warning"]


# ---- what a loader tells -------------------------------------------------------------------------


class Stream(IterableDataset):
    def __iter__(self):
        return iter(torch.zeros(9, 3))


class Rows(Dataset):
    def __len__(self):
        return 50

    def __getitem__(self, index):
        return torch.zeros(2)


@pytest.mark.parametrize(
    ("loader", "last", "in_order"),
    [
        (DataLoader(Rows(), batch_size=16), 2, True),
        (DataLoader(Rows(), batch_size=25), 25, True),
        (DataLoader(Rows(), batch_size=16, shuffle=True, drop_last=True), 16, False),
        (DataLoader(Rows(), batch_sampler=[[0, 1], [2]]), None, False),
        (DataLoader(Stream(), batch_size=4), None, False),
        (DataLoader(Rows(), batch_size=None), None, True),
    ],
)
def test_the_last_batch_of_a_loader(loader, last, in_order):
    found = Loader.of(loader)
    assert (found.last, found.in_order) == (last, in_order)
    assert found.iterable == isinstance(loader.dataset, Stream)


def test_a_list_is_no_loader():
    assert Loader.of([1, 2]) is None


def test_a_gap_of_a_young_model_is_info_and_of_a_fresh_one_none():
    model, y = nn.Sequential(nn.BatchNorm1d(3, affine=False), nn.Linear(3, 3)), torch.arange(96) % 3
    with torch.no_grad():
        model[1].weight.copy_(torch.eye(3))
        model[1].bias.zero_()
    x = 4 * torch.eye(3)[y] + torch.tensor([9.0, 0.0, 0.0])
    given = batches(x, y, 16)
    assert told(model, given, "SL316") == []
    model[0].momentum = 0.01
    model(x)
    assert [(f.module, f.severity) for f in told(model, given, "SL316")] == [("0", "info")]
    model[0].num_batches_tracked.fill_(5000)
    assert [(f.module, f.severity) for f in told(model, given, "SL316")] == [("0", "error")]
