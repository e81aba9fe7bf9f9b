"""`check`: what it asks, what it refuses, and that the model is as it was."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from case_book import batches, blobs, small_net, train
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from spiritlevel.doctor import check as room
from spiritlevel.doctor.check import RULES, check
from spiritlevel.doctor.choice import chosen
from spiritlevel.errors import UsageError

PAIRS = batches(*blobs(64))


# ---- which rules ---------------------------------------------------------------------------------


def ids(**given) -> list[str]:
    return [rule.id for rule in chosen(**given)]


def test_all_are_asked_in_order():
    assert ids() == sorted(RULES)


def test_select_and_ignore_take_ids_and_beginnings():
    assert ids(select="SL203") == ["SL203"]
    assert ids(select="sl203, SL205") == ["SL203", "SL205"]
    assert ids(select=["SL2"]) == [id for id in sorted(RULES) if id.startswith("SL2")]
    assert ids(ignore=("SL2",)) == [id for id in sorted(RULES) if not id.startswith("SL2")]
    with pytest.raises(UsageError, match="leave no rule to ask"):
        ids(select="SL203", ignore="SL203")


def test_the_longer_name_counts():
    assert ids(select="SL203", ignore="SL2") == ["SL203"]
    assert "SL203" not in ids(select="SL2", ignore="SL203")
    assert "SL203" not in ids(select="SL", ignore="SL2")


@pytest.mark.parametrize("name", ["SL9", "SL2033", "frozen", "", 3, None])
def test_a_name_that_is_no_rules_is_refused(name):
    with pytest.raises(UsageError, match=r"got .* in ignore; wanted the id of a rule"):
        chosen(ignore=[name])


def test_near_names_are_offered():
    with pytest.raises(UsageError, match=r"Did you mean .*SL203"):
        check(small_net(), select="SL2O3")


def test_what_is_lacking_decides_what_is_asked():
    found = check(small_net())
    assert set(found.asked) | set(found.skipped) == set(RULES)
    for id, rule in RULES.items():
        assert (id in found.asked) is (not rule.needs)
    assert found.skipped["SL301"] == "data"
    assert found.gap is None


def test_data_and_targets_are_told_apart():
    x, _ = blobs(64)
    model = train(small_net(), PAIRS, epochs=2)
    plain, targets = check(model, x.split(32)), check(model, PAIRS)
    assert "SL301" in plain.asked
    assert plain.gap is None
    assert plain.skipped["SL316"] == "targets"
    assert targets.gap is not None
    assert "SL316" in targets.asked
    assert str(targets).splitlines()[0].startswith("accuracy")


def test_what_no_rule_asks_for_is_not_measured(monkeypatch):
    monkeypatch.setattr(room, "measure", lambda *_, **__: pytest.fail("it was measured"))
    assert check(small_net(), PAIRS, select="SL2").gap is None


# ---- left as it was ------------------------------------------------------------------------------


def everything(model: nn.Module) -> list:
    """All that a check could move."""
    tensors = [*model.parameters(), *model.buffers()]
    return [
        [t.clone() for t in tensors],
        [id(t) for t in tensors],
        [p.grad for p in model.parameters()],
        [p.requires_grad for p in model.parameters()],
        [m.training for m in model.modules()],
        [sorted(m.__dict__) for m in model.modules()],
        [len(hooks) for m in model.modules() for hooks in hooks_of(m)],
        torch.get_rng_state(),
        random.getstate(),
        np.random.get_state()[1].tolist(),
        torch.is_grad_enabled(),
    ]


def hooks_of(module: nn.Module) -> list[dict]:
    return [
        module._forward_hooks,
        module._forward_pre_hooks,
        module._backward_hooks,
        module._backward_pre_hooks,
    ]


def same(one, other) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


def mixed() -> nn.Sequential:
    """With dropout, a frozen norm, gradients, and modes of all kinds."""
    torch.manual_seed(0)
    model = small_net()
    model.insert(6, nn.Dropout(0.5))
    train(model, PAIRS, epochs=1)
    model[1].eval().requires_grad_(False)
    model[4].weight.grad = torch.ones(8)
    return model


class Noisy(torch.utils.data.Dataset):
    """Draws from all generators, as augmentation does."""

    def __len__(self):
        return 64

    def __getitem__(self, index):
        noise = random.random() + np.random.rand() + torch.rand(())
        return blobs(64)[0][index] + noise, index % 3


def test_the_model_and_the_random_states_are_as_they_were():
    model, reference = mixed(), mixed()
    loader = DataLoader(Noisy(), batch_size=32, shuffle=True)
    before = everything(model), everything(reference)
    found = check(model, loader, reference=reference)
    assert found.gap is not None
    assert same(before[0], everything(model))
    assert same(before[1], everything(reference))


def test_the_order_that_a_loader_would_draw_next_is_as_it_was():
    generator = torch.Generator().manual_seed(3)
    loader = DataLoader(TensorDataset(*blobs(64)), 32, shuffle=True, generator=generator)
    before = generator.get_state()
    check(small_net(), loader)
    assert torch.equal(before, generator.get_state())


class Fails(nn.Module):
    def __init__(self, after: int) -> None:
        super().__init__()
        self.body, self.calls, self.after = mixed(), 0, after

    def forward(self, x):
        self.calls += 1
        if self.calls > self.after:
            raise RuntimeError("out of patience")
        return self.body(x)


@pytest.mark.parametrize("after", [0, 1, 2, 5, 7])
def test_so_they_are_where_the_model_raises(after):
    model = Fails(after)
    before = everything(model)
    with pytest.raises(UsageError, match=r"\(Fails\) raised RuntimeError.*: out of patience"):
        check(model, PAIRS)
    assert same(before, everything(model))
    assert model.calls == 0


def test_so_they_are_where_a_rule_raises(monkeypatch):
    def crash(_rule, _case):
        torch.rand(3)
        raise KeyError("ours")

    monkeypatch.setitem(RULES, "SL301", replace(RULES["SL301"], judge=crash))
    model = mixed()
    before = everything(model)[:-4]
    with pytest.raises(KeyError) as caught:
        check(model, PAIRS)
    assert "in rule SL301" in caught.value.__notes__[0]
    assert same(before, everything(model)[:-4])


def test_within_no_grad():
    model = mixed()
    with torch.no_grad():
        assert check(model, PAIRS).to_json() == check(model, PAIRS).to_json()


def test_twice_the_same():
    model = mixed()
    assert check(model, PAIRS).to_json() == check(model, PAIRS).to_json()


# ---- wrong use -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("small_net",), "got str as the model to check; wanted a torch.nn.Module"),
        ((small_net,), "got function as the model to check; .* Build it first"),
        ((None,), "got NoneType as the model"),
        ((small_net(), 3), "got a int as batches"),
        ((small_net(), []), "got no batches"),
        ((small_net(), iter([])), "got no batches"),
        ((small_net(), torch.zeros(2, 3, 6, 6)), "got a Tensor as batches"),
        ((small_net(), blobs(8)), "a tuple of an input and a target as batches"),
        ((small_net(), {"x": torch.zeros(2, 3, 6, 6)}), "got a dict as batches"),
        ((nn.Sequential(nn.LazyLinear(3)), PAIRS), "got Sequential with lazy layers, and data"),
    ],
)
def test_wrong_use_gets_one_clear_error(arguments, told):
    with pytest.raises(UsageError, match=told):
        check(*arguments)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"reference": "x"}, "got str as the reference to check"),
        ({"probe": 3}, "got int as the probe; wanted a spiritlevel.Probe"),
        ({"most_batches": 0, "batches": PAIRS}, "got most_batches=0"),
    ],
)
def test_wrong_options_get_one_too(given, told):
    with pytest.raises(UsageError, match=told):
        check(small_net(), **given)


def test_a_probe_of_another_model():
    from spiritlevel.probe.watch import Probe

    model, other = small_net(), small_net()
    with Probe(other) as probe:
        train(other, PAIRS, epochs=1)
    with pytest.raises(UsageError, match="got a probe of another Sequential"):
        check(model, probe=probe)
    assert check(other, probe=probe).asked


def test_a_lazy_model_is_checked_as_far_as_it_goes():
    model = nn.Sequential(nn.LazyConv2d(3, 3), nn.LazyBatchNorm2d(), nn.ReLU())
    assert check(model).ok


# ---- what is given -------------------------------------------------------------------------------


def test_forward_runs_what_is_no_batch():
    x, y = blobs(64)
    rows = [{"picture": a, "kind": b} for a, b in zip(x.split(32), y.split(32), strict=True)]
    found = check(small_net(), rows, forward=lambda model, batch: model(batch["picture"]))
    assert "SL301" in found.asked


def test_an_example_of_several_inputs():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm1d(4)

        def forward(self, a, b):
            return self.norm(a + b)

    a, b = torch.randn(2, 16, 4)
    for example in ((a, b), {"a": a, "b": b}):
        found = check(Two(), reference=Two(), example=example)
        assert "SL502" in found.asked
        assert found.ok


def test_progress_is_told():
    told = []
    check(small_net(), PAIRS, progress=lambda *now: told.append(now))
    assert {(done < total, total) for _, done, total in told} == {(True, len(PAIRS))}


def test_only_as_many_batches_as_asked_for_are_read():
    read = []

    def stream():
        for index, pair in enumerate(PAIRS * 50):
            read.append(index)
            yield pair

    check(small_net(), stream(), most_batches=3)
    assert len(read) == 3


def test_a_loss_may_be_walked_back_after_a_check():
    for training in (True, False):
        model = small_net().train(training)
        loss = nn.functional.cross_entropy(model(PAIRS[0][0]), PAIRS[0][1])
        before = dict(model.named_buffers())
        check(model, PAIRS)
        loss.backward()
        assert all(b is before[name] for name, b in model.named_buffers())


def test_batches_that_break_off_are_the_users():
    def stream():
        yield PAIRS[0]
        raise OSError("disk gone")

    with pytest.raises(UsageError, match="got OSError: disk gone from the batches, after 1 of"):
        check(small_net(), stream())


def test_targets_in_a_column_or_a_list_are_targets():
    for shaped in (lambda y: y[:, None], lambda y: y.tolist()):
        found = check(small_net(), [(x, shaped(y)) for x, y in PAIRS])
        assert found.gap is not None
        assert found.gap.metric == "accuracy"


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"most_batches": "x"}, "got most_batches='x'"),
        ({"most_batches": 2.5}, "got most_batches=2.5"),
        ({"ignore": 7}, "got ignore=7"),
        ({"ignore": "SL"}, "leave no rule to ask"),
        ({"forward": 3}, "got int as forward"),
    ],
)
def test_arguments_of_other_kinds(given, told):
    with pytest.raises(UsageError, match=told):
        check(small_net(), PAIRS, **given)
