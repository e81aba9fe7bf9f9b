"""What `apply` does on the model, what it says of it, and what it leaves."""

from __future__ import annotations

import copy

import pytest
import torch
from case_book import batches, blobs, small_net, train
from outcomes import CASES
from torch import nn

from spiritlevel.doctor.check import RULES, check
from spiritlevel.doctor.finding import Finding
from spiritlevel.doctor.fixes import FIXES, Patient, apply
from spiritlevel.probe.population import Population

PAIRS = batches(*blobs())


def trained() -> nn.Sequential:
    return train(small_net(), PAIRS, epochs=2).eval()


def finding(rule: str, module: str, severity="error", **evidence) -> Finding:
    return Finding(rule, severity, module, "was wrong", evidence, "do this")


def applied(model: nn.Module, *findings: Finding, reference=None) -> tuple[str, ...]:
    return apply(Patient(model, reference, Population), findings)


def test_every_fix_is_of_a_rule():
    assert set(FIXES) <= set(RULES)


def test_broken_statistics_are_taken_anew_and_the_model_is_well():
    model = trained()
    with torch.no_grad():
        model[1].running_var[0] = -1.0
        model[4].running_mean[2] = torch.nan
    assert not check(model, PAIRS).ok
    again = check(model, PAIRS).apply()
    assert again.ok, again
    with torch.no_grad():
        fed = torch.cat([model[0](x) for x, _ in PAIRS])
    torch.testing.assert_close(model[1].running_mean, fed.mean((0, 2, 3)))
    torch.testing.assert_close(model[1].running_var, fed.var((0, 2, 3)))
    assert model[1].num_batches_tracked == len(PAIRS)


def test_it_is_noted_in_the_log_and_told():
    model = trained()
    with torch.no_grad():
        model[1].running_var[0] = -1.0
    again = check(model, PAIRS, select="SL205").apply()
    (entry,) = model.spiritlevel_log
    assert (entry.action, entry.paths) == ("fixed", ("1",))
    assert entry.why == f"SL205: running statistics taken anew from {len(PAIRS)} batches"
    assert str(entry) in again.notes


def test_batches_that_come_once_are_kept():
    model = trained()
    with torch.no_grad():
        model[1].running_var[0] = -1.0
    again = check(model, iter(PAIRS), select="SL205").apply()
    assert again.ok


def test_without_batches_it_is_left_and_told():
    model = trained()
    with torch.no_grad():
        model[1].running_var[0] = -1.0
    again = check(model, select="SL205").apply()
    assert not again.ok
    assert "Left to you: SL205." in again.notes
    assert not hasattr(model, "spiritlevel_log")


def test_info_is_left_as_it_is():
    model = trained()
    assert applied(model, finding("SL203", "1", "info")) == ()
    assert model[1].weight.requires_grad


def test_momentum_is_turned_round():
    norm = nn.BatchNorm1d(3, momentum=0.9)
    applied(nn.Sequential(norm), finding("SL101", "0"))
    assert norm.momentum == 0.1


def test_all_layers_of_a_finding_are_fixed():
    model = nn.Sequential(*(nn.BatchNorm1d(3, momentum=0.99) for _ in range(3)))
    (told,) = applied(model, finding("SL101", "0", layers=["0", "2"]))
    assert [norm.momentum for norm in model] == [0.01, 0.99, 0.01]
    assert told == "fixed 0, 2: SL101: momentum 0.99 -> 0.01"


def test_half_precision_is_left():
    model = nn.Sequential(nn.BatchNorm1d(3).bfloat16())
    applied(model, finding("SL104", "0"))
    assert model[0].running_mean.dtype is model[0].weight.dtype is torch.float32
    assert model[0].num_batches_tracked.dtype is torch.int64


def test_frozen_is_frozen():
    model = small_net().train()
    applied(model, finding("SL203", "1"))
    assert not model[1].training
    assert not any(p.requires_grad for p in model[1].parameters())
    assert model[4].training


@pytest.mark.parametrize(
    ("before", "kind", "x"),
    [
        (nn.Linear(4, 6), nn.BatchNorm1d, (5, 4)),
        (nn.Conv1d(4, 6, 1), nn.BatchNorm1d, (5, 4, 3)),
        (nn.Conv2d(4, 6, 1), nn.BatchNorm2d, (5, 4, 3, 3)),
        (nn.Conv3d(4, 6, 1), nn.BatchNorm3d, (5, 4, 3, 3, 3)),
    ],
)
def test_a_synchronised_norm_becomes_a_plain_one(before, kind, x):
    model = nn.Sequential(before, nn.SyncBatchNorm(6, eps=1e-3, momentum=0.2))
    old, keys = model[1], list(model.state_dict())
    applied(model, finding("SL108", "1"))
    new = model[1]
    assert type(new) is kind
    assert (new.eps, new.momentum) == (1e-3, 0.2)
    assert new.weight is old.weight
    assert new.running_var is old.running_var
    assert list(model.state_dict()) == keys
    model(torch.randn(x))


def test_a_shared_synchronised_norm_stays_shared():
    norm = nn.SyncBatchNorm(6)
    model = nn.Sequential(nn.Linear(6, 6), norm, nn.Linear(6, 6), norm)
    applied(model, finding("SL108", "1"))
    assert type(model[1]) is nn.BatchNorm1d
    assert model[1] is model[3]


def test_a_norm_that_is_the_model_cannot_be_exchanged():
    model = nn.SyncBatchNorm(6)
    assert applied(model, finding("SL108", "")) == ("Left to you: SL108.",)


def test_a_counter_is_whole_again():
    model = small_net()
    model[1].num_batches_tracked = torch.tensor(3.6)
    model[4].num_batches_tracked = None
    applied(model, finding("SL210", "1"), finding("SL208", "4"))
    for norm, count in ((model[1], 4), (model[4], 0)):
        assert norm.num_batches_tracked.dtype is torch.int64
        assert norm.num_batches_tracked == count
    model(torch.randn(4, 3, 6, 6))
    assert model[1].num_batches_tracked == 5


def test_buffers_are_copied_from_the_reference():
    source = trained()
    target = small_net()
    target.load_state_dict(source.state_dict())
    for norm in (target[1], target[4]):
        norm.reset_running_stats()
    (told,) = applied(target, finding("SL504", "1", layers=["1", "4"]), reference=source)
    assert "copied from the reference" in told
    for name, buffer in source.named_buffers():
        assert torch.equal(target.get_buffer(name), buffer)
        assert target.get_buffer(name) is not buffer


def test_what_cannot_be_done_is_listed():
    model = small_net()
    told = applied(model, finding("SL305", ""), finding("SL204", "1"), finding("SL204", "4"))
    assert told == ("Left to you: SL305, SL204 (2 times).",)


def test_weights_and_modes_stay():
    model = trained()
    with torch.no_grad():
        model[1].running_var[0] = -1.0
    before = copy.deepcopy([*model.parameters()])
    check(model, PAIRS).apply()
    assert all(map(torch.equal, before, model.parameters()))
    assert not any(module.training for module in model.modules())


def test_a_momentum_that_cannot_be_turned_is_left():
    for momentum in (1.0, 10.0):
        model = nn.Sequential(nn.BatchNorm1d(3, momentum=momentum))
        assert applied(model, finding("SL101", "0")) == ("Left to you: SL101.",)
        assert model[0].momentum == momentum


def test_all_layers_but_the_frozen_are_recalibrated_for_stale_statistics():
    model = trained().train()
    model[1].eval()
    before = model[1].running_mean.clone()
    model[4].running_mean += 9
    found = check(model, PAIRS, select="SL301")
    assert [each.module for each in found.findings] == ["4"]
    assert found.apply().findings == ()
    assert torch.equal(model[1].running_mean, before)
    assert not model[1].training


def test_what_two_findings_ask_for_is_done_once():
    model = trained().train()
    model[4].running_mean += 9
    found = check(model, PAIRS, select="SL301,SL316")
    assert {each.rule for each in found.findings} == {"SL301", "SL316"}
    again = found.apply()
    assert [entry.why.partition(":")[0] for entry in model.spiritlevel_log] == ["SL316"]
    assert "Left to you" not in " ".join(again.notes)


FIXABLE = [entry for entry in CASES if entry.rule in FIXES and entry.ranks == 1]


@pytest.mark.parametrize("entry", FIXABLE, ids=lambda entry: entry.name)
def test_a_bug_of_the_book_is_cured_or_left_and_told(entry):
    given = {"batches": PAIRS} if entry.rule in ("SL204", "SL205", "SL206") else {}
    found = check(**given | entry.bug(), select=entry.rule)
    again = found.apply()
    told = " ".join(again.notes)
    assert again.ok or "Left to you" in told
    assert found.ok or "fixed" in told or "Left to you" in told
