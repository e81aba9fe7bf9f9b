"""How batches reach a model; what `measure` and `recalibrate` say of them is in their tests."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import nn
from torch.utils.data import DataLoader

from spiritlevel.lent.feeding import MOST_BYTES, run_batch, take, targets


class Named(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(3)

    def forward(self, x, shift=None, labels=None):
        out = self.norm(x if shift is None else x + shift)
        loss = None if labels is None else out.sum()
        return SimpleNamespace(loss=loss, logits=out)


def test_a_target_that_the_model_does_not_take_stays_out():
    batch = {"x": torch.randn(6, 3), "target": torch.arange(6)}
    assert run_batch(Named(), batch).loss is None
    assert targets(batch) is batch["target"]


def test_tuples_go_by_position_without_their_last():
    model, x = Named(), torch.randn(6, 3)
    expected = run_batch(model, (x, torch.ones(6, 3), torch.arange(6))).logits
    assert not torch.equal(expected, run_batch(model, (x,)).logits)


def test_batches_that_fill_memory_are_cut(monkeypatch):
    monkeypatch.setattr("spiritlevel.lent.feeding.MOST_BYTES", 1 << 20)
    taken = take([torch.zeros(1 << 17) for _ in range(9)])
    assert (len(taken.batches), taken.exhausted) == (2, False)
    assert taken.notes == ("measured on the first 2 batches: they fill 1 MiB",)
    assert MOST_BYTES == 1 << 30


def test_a_model_without_parameters_does_not_write_to_the_batch():
    class InPlace(nn.Module):
        def forward(self, x):
            return x.mul_(2)

    x = torch.ones(3)
    assert run_batch(InPlace(), x).eq(2).all()
    assert x.eq(1).all()


def test_what_a_loader_draws_from_goes_on_as_it_stood():
    g = torch.Generator().manual_seed(3)
    loader = DataLoader(torch.arange(99), 9, shuffle=True, generator=g)
    before, state = g.get_state(), torch.get_rng_state()
    first, second = take(loader), take(loader)
    assert torch.equal(torch.cat(first.batches), torch.cat(second.batches))
    assert torch.equal(g.get_state(), before)
    assert torch.equal(torch.get_rng_state(), state)
