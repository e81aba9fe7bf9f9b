"""The probe in loops that go wrong, copy, or do several things in one step."""

import copy
import io
import math
import pickle

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel
from torch.utils.checkpoint import checkpoint

from spiritlevel.probe import reading, table
from spiritlevel.probe.counting import Mode
from spiritlevel.probe.watch import Probe

TRAIN = Mode(True, True)


def net():
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, 4)
    )


def data(steps=5, n=16):
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(steps, n, 3, 6, 6, generator=generator)
    return list(zip(x, torch.randint(0, 4, (steps, n), generator=generator), strict=True))


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.1)


def backward(model, x, y):
    F.cross_entropy(model(x), y).backward()


def step(model, optimizer, x, y):
    optimizer.zero_grad()
    backward(model, x, y)
    optimizer.step()


def test_a_model_is_copied_averaged_and_saved_within_the_block():
    model = net()
    optimizer = sgd(model)
    with Probe(model, every=1) as probe:
        step(model, optimizer, *data()[0])
        twin, average = copy.deepcopy(model), AveragedModel(model)
        file = io.BytesIO()
        torch.save(model, file)
        again = pickle.loads(pickle.dumps(model))  # noqa: S301
        for each in (twin, again):
            step(each, sgd(each), *data()[1])  # tells the probe nothing
        average.update_parameters(model)
        step(model, optimizer, *data()[1])
    assert probe.counts.steps == 2
    assert probe.counts.layers["1"].forwards == {TRAIN: 2}
    file.seek(0)
    torch.load(file, weights_only=False)(data()[0][0])


def test_the_gradient_of_a_closure_is_that_of_its_first_run():
    model, twin = net(), net()
    optimizer, other = sgd(model), sgd(twin)
    expected = []
    with Probe(model, every=1) as probe:
        for x, y in data():

            def closure(x=x, y=y):
                optimizer.zero_grad()
                loss = F.cross_entropy(model(x), y)
                loss.backward()
                return loss

            optimizer.step(closure=closure)
            step(twin, other, x, y)
            expected.append(float(torch.cat([twin[1].weight.grad, twin[1].bias.grad]).norm()))
    assert probe.readings.of("1", "grad_norm") == pytest.approx(expected)
    assert torch.equal(model[0].weight, twin[0].weight)
    assert probe.counts.per_step == {1: 5}


def test_lbfgs_runs_the_model_several_times_in_a_step():
    model = net()
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=3)
    with Probe(model, every=1) as probe:
        for x, y in data(3):

            def closure(x=x, y=y):
                optimizer.zero_grad()
                loss = F.cross_entropy(model(x), y)
                loss.backward()
                return loss

            optimizer.step(closure)
    assert probe.counts.steps == 3
    assert all(math.isfinite(g) and g > 0 for g in probe.readings.of("1", "grad_norm"))


def test_a_step_that_raises_is_not_the_last():
    model = net()
    optimizer = sgd(model)
    with Probe(model, every=1) as probe:
        for number, (x, y) in enumerate(data()):
            if number == 1:
                optimizer.zero_grad()
                backward(model, x, y)
                with pytest.raises(ZeroDivisionError):
                    optimizer.step(lambda: 1 / 0)
            else:
                step(model, optimizer, x, y)
    assert probe.counts.steps == 4


def test_passes_without_a_step_take_no_more_memory(monkeypatch):
    monkeypatch.setattr(reading, "MOST_PASSES", 4)
    model, (x, _) = net(), data()[0]
    with Probe(model) as probe:
        for _ in range(40):
            model(x)
        sample = probe._samples["1"]
        held = sum(t.numel() for t in (*sample.inputs, *sample.outputs))
        assert held <= 2 * 5 * 4 * reading.MOST_SORTED
        assert sample.input.count == 40 * 16 * 16


class Plain:
    """An optimizer that is not torch's."""

    def __init__(self, parameters):
        self.param_groups = [{"params": list(parameters)}]

    @torch.no_grad()
    def step(self):
        for p in self.param_groups[0]["params"]:
            p.sub_(0.1 * p.grad)
            p.grad = None


def test_a_given_optimizer_that_is_not_torchs_steps_too():
    model = net()
    optimizer = Plain(model.parameters())
    with Probe(model, optimizer=optimizer, every=1) as probe:
        for x, y in data():
            backward(model, x, y)
            optimizer.step()
    assert (probe.counts.steps, probe.counts.perturbed) == (4, 0)  # the last shows in the next pass
    assert "no optimizer of torch's stepped" in probe.unseen[0]


def test_groups_may_be_added_and_optimizers_come_and_go():
    model, other = net(), net()
    head = torch.optim.SGD(model[4].parameters(), lr=0.1)
    with Probe(model[0:2]) as probe:
        for number, (x, y) in enumerate(data()):
            if number == 2:
                head.add_param_group({"params": model[0:2].parameters()})
            step(model, head, x, y)
            step(other, sgd(other), x, y)
    assert probe.counts.steps == 3


def test_an_adversary_leaves_gradients_that_no_step_was_skipped_for():
    critic, maker = net(), nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))
    of_critic, of_maker = sgd(critic), sgd(maker)
    with Probe(critic) as probe:
        for x, y in data():
            step(critic, of_critic, x, y)
            of_maker.zero_grad()
            backward(critic, maker(x), y)  # fills the critic's gradients, too
            of_maker.step()
    assert (probe.counts.steps, probe.counts.skipped) == (5, 0)


def test_a_gradient_that_is_zero_is_not_gone():
    model = net()
    nn.init.zeros_(model[4].weight)  # what lies before it has a gradient of 0
    optimizer = sgd(model)
    with Probe(model) as probe:
        for number, (x, y) in enumerate(data(8)):
            backward(model, x, y)
            if number % 4 == 3:
                optimizer.step()
                optimizer.zero_grad(set_to_none=False)
    assert (probe.counts.skipped, probe.counts.per_step) == (0, {4: 2})


@pytest.mark.parametrize("late", [False, True])
def test_what_a_skipped_step_had_is_not_the_next_ones(late):
    model = net()
    optimizer = sgd(model)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    with Probe(model, every=1) as probe:
        for number, (x, y) in enumerate(data()):
            if not late:
                optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y) * (math.inf if number == 2 else 1)
            if late:
                optimizer.zero_grad()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
    assert (probe.counts.steps, probe.counts.skipped) == (4, 1)
    assert probe.counts.layers["1"].per_step == {1: 4}
    values = [v for v in probe.readings.of("1", "values") if not math.isnan(v)]
    assert set(values) == {16 * 16}
    assert len(values) == 4 - late


def test_several_optimizers_make_one_step():
    model = net()
    body = torch.optim.SGD(model[:2].parameters(), lr=0.1)
    head = torch.optim.SGD(model[4].parameters(), lr=0.1)
    with Probe(model) as probe:
        for x, y in data():
            body.zero_grad()
            head.zero_grad()
            backward(model, x, y)
            body.step()
            head.step()
    assert (probe.counts.steps, probe.counts.per_step) == (5, {1: 5})


def test_optimizers_that_step_within_the_backward_pass():
    model = net()
    each = {p: torch.optim.SGD([p], lr=0.1) for p in model.parameters()}

    def steps(parameter):
        each[parameter].step()
        each[parameter].zero_grad()

    handles = [p.register_post_accumulate_grad_hook(steps) for p in model.parameters()]
    with Probe(model) as probe:
        for x, y in data():
            backward(model, x, y)
    for handle in handles:
        handle.remove()
    assert (probe.counts.steps, probe.counts.skipped) == (5, 0)


@pytest.mark.filterwarnings("ignore:`torch.jit.script")
def test_trained_in_a_graph_and_validated_without_it():
    torch._dynamo.reset()
    model = net()
    optimizer, compiled = sgd(model), torch.compile(model, backend="aot_eager")
    with Probe(model, every=1) as probe:
        for x, y in data(3):
            step(compiled, optimizer, x, y)
            with torch.no_grad():
                model.eval()(x)
            model.train()
    assert "1 of 1 normalization layers trained only within graphs" in probe.unseen[0]


def test_what_cannot_be_read_or_written_ends_no_training():
    class Writer:
        def add_scalar(self, *_):
            raise OSError("no space left on device")

    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.net, self.turn = net(), nn.Linear(4, 4, dtype=torch.cfloat)

        def forward(self, x):
            return self.turn(self.net(x).cfloat()).abs()

    model = Odd()
    optimizer = sgd(model)
    probe = Probe(model, every=1)
    probe.log_to(Writer())
    with probe:
        with pytest.warns(UserWarning, match="cannot read the writer"):
            step(model, optimizer, *data()[0])
        for x, y in data()[1:3]:
            step(model, optimizer, x, y)
    assert probe.counts.steps == 3
    assert probe.readings.of("turn", "grad_norm")[0] > 0
    assert "no space left" in probe.unseen[0]


class Checkpoints(nn.BatchNorm2d):
    def forward(self, x):
        return checkpoint(super().forward, x, use_reentrant=False)


def test_a_norm_that_checkpoints_itself_is_not_run_again():
    def trained(probing):
        model = net()
        model[1] = Checkpoints(8)
        optimizer = sgd(model)
        if not probing:
            for x, y in data():
                step(model, optimizer, x, y)
            return model.state_dict()
        with Probe(model, every=1):
            for x, y in data():
                step(model, optimizer, x, y)
        return model.state_dict()

    for one, other in zip(trained(True).values(), trained(False).values(), strict=True):
        assert torch.equal(one, other)


def test_all_channels_are_looked_through_for_what_is_not_finite():
    model = nn.Sequential(nn.GroupNorm(2, 8), nn.ReLU(), nn.BatchNorm2d(8))
    with torch.no_grad():
        model[2].weight[3] = math.nan
    x = torch.randn(64, 8, 32, 32)
    x[1, 5, 4, 4] = math.nan
    optimizer = sgd(model)
    with Probe(model) as probe:
        model(x).sum().backward()
        optimizer.step()
    rows = {row["layer"]: row for row in probe.readings}
    assert rows["0"]["non_finite"] == 4  # the channels of one group
    assert rows["1"]["non_finite"] == 4
    assert rows["2"]["non_finite"] == 5
    assert rows["1"]["dead_share"] == 0


def test_layer_norms_have_their_channels_last_and_inputs_may_be_named():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.of_batch = nn.LayerNorm(16), nn.BatchNorm1d(7)

        def forward(self, x):
            return self.of_batch(input=self.norm(x))

    model = Named()
    optimizer = sgd(model)
    with Probe(model) as probe:
        model(torch.randn(4, 7, 16)).sum().backward()
        optimizer.step()
    assert probe.counts.layers["norm"].values == {28: 1}
    assert probe.counts.layers["of_batch"].values == {64: 1}
    assert probe.readings.of("norm", "values") == [28]
    assert probe.unseen == []


def test_layers_that_are_replaced_lazy_frozen_or_fed_nothing():
    model = net()
    model[1] = nn.LazyBatchNorm2d()
    probe = Probe(model, every=np.int64(1))
    model[4].requires_grad_(False)
    with probe:
        optimizer = torch.optim.SGD(model[0].parameters(), lr=0.1)
        step(model, optimizer, *data()[0])
        with torch.no_grad():
            model.eval()(torch.zeros(0, 3, 6, 6))
        model[1] = nn.BatchNorm2d(8)
    assert [layer.type for layer in probe.readings.layers][1] == "BatchNorm2d"
    assert probe.unseen == ["1: it was taken away while the probe ran"]


def test_an_attack_in_eval_is_no_pass_of_another_kind():
    model = net()
    optimizer = sgd(model)
    with Probe(model, every=1) as probe:
        for x, y in data():
            model.eval()
            attacked = (x * 4 + 9).requires_grad_()
            torch.autograd.grad(F.cross_entropy(model(attacked), y), attacked)
            model.train()
            step(model, optimizer, x, y)
    assert all(math.isnan(shift) for shift in probe.readings.of("1", "pass_shift"))


def test_a_long_run_takes_fewer_samples_evenly_spaced(monkeypatch):
    monkeypatch.setattr(table, "MOST_STEPS", 8)
    model = net()
    optimizer, batches = sgd(model), data()
    with Probe(model, every=2) as probe:
        for number in range(60):
            step(model, optimizer, *batches[number % 5])
    assert len(probe.readings.steps) < 8
    assert set(np.diff(probe.readings.steps)) == {2 * probe.readings.stride}
    assert probe.overhead.samples < 20
