"""The probe in real loops: what it reads, and that it changes nothing."""

import copy
import math
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.optim import optimizer as optim
from torch.utils.checkpoint import checkpoint

import spiritlevel as sl
from spiritlevel.errors import UsageError
from spiritlevel.nn import observe
from spiritlevel.probe.counting import Mode
from spiritlevel.probe.watch import Probe

TRAIN, TRAIN_NO_GRAD = Mode(True, True), Mode(True, False)
EVAL_NO_GRAD = Mode(False, False)


def net(norm=nn.BatchNorm2d, dropout=0.0):
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        norm(8),
        nn.ReLU(inplace=True),
        nn.Dropout(dropout),
        nn.Conv2d(8, 6, 3),
        norm(6),
        nn.Sigmoid(),
        nn.Flatten(),
        nn.Linear(6 * 16, 4),
    )


def data(steps=6, n=16):
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(steps, n, 3, 6, 6, generator=generator) * 2 + 1
    return list(zip(x, torch.randint(0, 4, (steps, n), generator=generator), strict=True))


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def loop(model, optimizer, batches):
    losses = []
    for x, y in batches:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def hooks_of(model):
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_forward_hooks_always_called",
             "_forward_hooks_with_kwargs", "_backward_hooks")  # fmt: skip
    of_modules = [
        (path, kind, list(getattr(module, kind)))
        for path, module in model.named_modules()
        for kind in kinds
    ]
    of_parameters = [
        (name, dict(p._backward_hooks or {}), dict(p._post_accumulate_grad_hooks or {}))
        for name, p in model.named_parameters()
    ]
    everywhere = len(optim._global_optimizer_pre_hooks), len(optim._global_optimizer_post_hooks)
    return of_modules, of_parameters, everywhere, list(observe._observers)


MODELS = {
    "torch": lambda: net(dropout=0.3),
    "ours": lambda: sl.fuse(net(sl.nn.BatchNorm2d, dropout=0.3)),
    "ghost": lambda: net(sl.nn.norm_layer("ghost:4"), dropout=0.3),
    "group": lambda: net(lambda c: nn.GroupNorm(2, c), dropout=0.3),
    "channels_last": lambda: net().to(memory_format=torch.channels_last),
    "ghostnet": lambda: sl.create_model("ghostnet_050", num_classes=4, stem="cifar"),
}


@pytest.mark.parametrize("every", [1, 4])
@pytest.mark.parametrize("kind", MODELS)
def test_training_is_bit_for_bit_what_it_is_without(kind, every):
    def trained(probing):
        torch.manual_seed(2)
        model = MODELS[kind]().train()
        optimizer = sgd(model)
        batches = data(3, 4) if kind == "ghostnet" else data()
        if kind == "ghostnet":
            batches = [(F.interpolate(x, 32), y) for x, y in batches]
        before = hooks_of(model)
        torch.manual_seed(3)
        if probing:
            with Probe(model, optimizer=optimizer, every=every) as probe:
                losses = loop(model, optimizer, batches)
            assert probe.readings.steps
        else:
            losses = loop(model, optimizer, batches)
        assert hooks_of(model) == before
        gradients = [p.grad for p in model.parameters()]
        return losses, list(model.state_dict().values()), gradients, torch.get_rng_state()

    with_probe, without = trained(True), trained(False)
    assert with_probe[0] == without[0]
    for ours, theirs in zip(with_probe[1:3], without[1:3], strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    assert torch.equal(with_probe[3], without[3])


def test_all_is_put_back_when_the_loop_raises():
    model = net()
    before = hooks_of(model)
    with pytest.raises(RuntimeError), Probe(model):
        loop(model, sgd(model), [*data(1), (torch.randn(2, 5, 6, 6), None)])
    assert hooks_of(model) == before


def test_a_forward_that_raises_leaves_the_probe_at_work():
    model = net()
    optimizer = sgd(model)
    with Probe(model, every=1) as probe:
        with pytest.raises(RuntimeError):
            model(torch.randn(2, 5, 6, 6))
        loop(model, optimizer, data(2))
    assert probe.counts.per_step == {2: 1, 1: 1}  # the pass that failed belongs to the first step
    assert probe.counts.layers["1"].per_step == {1: 2}


@pytest.mark.parametrize("norm", [nn.BatchNorm2d, sl.nn.BatchNorm2d])
def test_each_number_is_its_slow_twins(norm):
    model, twin = net(norm), net(norm)
    optimizer, batches = sgd(model), data(3)
    with Probe(model, optimizer=optimizer, every=2) as probe:
        loop(model, optimizer, batches)

    other, inputs, outputs = sgd(twin), [], []

    def keep(_module, given, y):
        inputs.append(given[0].detach().double())
        outputs.append(y.detach().double())

    twin[5].register_forward_hook(keep)
    loop(twin, other, batches[:2])
    running = twin[5].running_mean.double(), twin[5].running_var.double()
    gamma = twin[5].weight.detach().clone(), twin[5].bias.detach().clone()
    loop(twin, other, batches[2:])
    x, y = inputs[2], outputs[2]
    mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0)
    z = (running[0] - mean).abs() / (var + 1e-5).sqrt()
    ratio = ((running[1] + 1e-5) / (var + 1e-5)).log()
    moved = [(a - b).detach() for a, b in zip((twin[5].weight, twin[5].bias), gamma, strict=True)]
    expected = {
        "input_mean": x.mean(),
        "input_var": x.var(correction=0),
        "output_mean": y.mean(),
        "output_var": y.var(correction=0),
        "values": torch.tensor(16 * 16),
        "z_median": z.median(),
        "z_max": z.max(),
        "log_var_ratio_median": ratio.median(),
        "log_var_ratio_worst": ratio[ratio.abs().argmax()],
        "gamma_min": twin[5].weight.min(),
        "gamma_mean": twin[5].weight.mean(),
        "gamma_max": twin[5].weight.max(),
        "beta_min": twin[5].bias.min(),
        "beta_mean": twin[5].bias.mean(),
        "beta_max": twin[5].bias.max(),
        "grad_norm": torch.cat([twin[5].weight.grad, twin[5].bias.grad]).norm(),
        "update_ratio": torch.cat(moved).norm() / torch.cat(gamma).norm(),
        "dead_share": (y.amax((0, 2, 3)) <= 0).double().mean(),
        "non_finite": torch.tensor(0),
        "batches_tracked": torch.tensor(3),
    }
    assert probe.readings.steps == [0, 2]
    (row,) = [r for r in probe.readings if r["layer"] == "5" and r["step"] == 2]
    for name, value in expected.items():
        assert row[name] == pytest.approx(float(value.detach()), rel=2e-4, abs=2e-5), name
    for name, values in (("input", x), ("output", y)):
        for share in (5, 50, 95):
            expected_cut = np.percentile(values.numpy(), share)
            assert row[f"{name}_p{share:02}"] == pytest.approx(expected_cut, abs=0.02), share
    assert math.isnan(row["saturated_share"])
    assert math.isnan(row["pass_shift"])


def test_weights_and_activations_have_rows_of_their_own():
    model = net()
    with torch.no_grad():
        model[1].weight[:2], model[1].bias[:2] = 0, -1  # dead after ReLU
        model[5].weight.fill_(40)  # the sigmoid saturates
    optimizer, ((x, y),) = sgd(model), data(1)
    with Probe(model, optimizer=optimizer) as probe:
        loop(model, optimizer, [(x, y)])
    rows = {row["layer"]: row for row in probe.readings}
    assert {p: (r["kind"], r["type"]) for p, r in rows.items()} == {
        "0": ("weight", "Conv2d"),
        "1": ("norm", "BatchNorm2d"),
        "2": ("activation", "ReLU"),
        "4": ("weight", "Conv2d"),
        "5": ("norm", "BatchNorm2d"),
        "6": ("activation", "Sigmoid"),
        "8": ("weight", "Linear"),
    }
    assert rows["2"]["dead_share"] == pytest.approx(2 / 8)
    assert rows["1"]["dead_share"] == pytest.approx(2 / 8)
    assert rows["6"]["saturated_share"] > 0.8
    gradient = torch.cat([model[0].weight.grad.flatten(), model[0].bias.grad]).norm()
    assert rows["0"]["grad_norm"] == pytest.approx(float(gradient), rel=1e-5)
    assert rows["0"]["update_ratio"] > 0


def test_passes_of_one_step_are_merged():
    model, batches = net(), data(4)
    optimizer = sgd(model)
    seen = []
    model[0].register_forward_hook(lambda _m, _x, y: seen.append(y.detach().double()))
    with Probe(model, optimizer=optimizer) as probe:
        for shift, (x, y) in enumerate(batches):
            F.cross_entropy(model(x + 20 * shift), y).backward()
        optimizer.step()
    whole = torch.cat(seen)
    (row,) = [row for row in probe.readings if row["layer"] == "1"]
    assert row["values"] == 4 * 16 * 36
    assert row["input_mean"] == pytest.approx(float(whole.mean()), rel=1e-6)
    assert row["input_var"] == pytest.approx(float(whole.var(correction=0)), rel=1e-5)
    means = torch.stack([each.mean((0, 2, 3)) for each in seen])
    within = torch.stack([each.var((0, 2, 3), correction=0) for each in seen]).mean(0).sqrt()
    shift = ((means.amax(0) - means.amin(0)) / within).median()
    assert row["pass_shift"] == pytest.approx(float(shift), rel=1e-4)
    assert shift > 0.4
    assert probe.counts.layers["1"].per_step == {4: 1}
    assert probe.counts.per_step == {4: 1}


def test_eval_in_between_is_counted_and_not_read():
    model, batches = net(), data(4)
    optimizer = sgd(model)
    with Probe(model, optimizer=optimizer, every=1) as probe:
        for x, y in batches:
            loop(model, optimizer, [(x, y)])
            model.eval()
            with torch.no_grad():
                model(x * 100)
            model.train()
    counted = probe.counts.layers["1"]
    assert counted.forwards == {TRAIN: 4, EVAL_NO_GRAD: 4}
    assert counted.writes == {TRAIN: 4}
    assert counted.per_step == {1: 4}
    assert counted.batch_sizes == {16: 4}
    assert counted.values == {16 * 36: 4}
    assert max(probe.readings.of("1", "input_var")) < 100
    assert probe.counts.forwards == {TRAIN: 4, EVAL_NO_GRAD: 4}


@pytest.mark.parametrize("norm", [nn.BatchNorm2d, sl.nn.BatchNorm2d])
def test_validation_in_train_shows_as_writes_without_grad(norm):
    model = net(norm)
    optimizer = sgd(model)
    with Probe(model) as probe:
        for x, y in data(3):
            loop(model, optimizer, [(x, y)])
            with torch.no_grad():
                model(x)
    assert probe.counts.layers["1"].writes == {TRAIN: 3, TRAIN_NO_GRAD: 3}


def test_frozen_norms_write_nothing_and_are_read():
    model = net()
    model[1].eval()
    optimizer = sgd(model)
    with Probe(model, every=1) as probe:
        loop(model, optimizer, data(2))
    assert probe.counts.layers["1"].writes == {}
    assert probe.counts.layers["5"].writes == {TRAIN: 2}
    assert probe.counts.all_eval_steps == 0
    assert not math.isnan(probe.readings.of("1", "z_median")[0])


def test_steps_in_eval_after_steps_in_train():
    model = net()
    optimizer = sgd(model)
    with Probe(model) as probe:
        loop(model, optimizer, data(2))
        model.eval()
        loop(model, optimizer, data(3))
    assert probe.counts.all_eval_steps == 3
    assert probe.counts.first_eval_step == 2


class Checkpointed(nn.Module):
    def __init__(self, reentrant):
        super().__init__()
        self.stem, self.body, self.reentrant = net()[:3], net()[4:], reentrant

    def forward(self, x):
        x = x.requires_grad_() if self.reentrant else x
        return self.body(checkpoint(self.stem, x, use_reentrant=self.reentrant))


@pytest.mark.parametrize("reentrant", [True, False])
def test_what_a_checkpoint_runs_again_is_told_apart(reentrant):
    def trained(probing):
        model = Checkpointed(reentrant)
        optimizer = sgd(model)
        if not probing:
            return loop(model, optimizer, data(3)), model, None
        with Probe(model, every=1) as probe:
            return loop(model, optimizer, data(3)), model, probe

    losses, model, probe = trained(True)
    plain, other, _ = trained(False)
    assert losses == plain
    for a, b in zip(model.state_dict().values(), other.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    counted = probe.counts.layers["stem.1"]
    assert counted.forwards == {TRAIN: 3}
    assert (counted.recomputed, counted.recomputed_writes) == (3, 3)
    assert counted.per_step == {1: 3}
    assert probe.counts.layers["body.5"].recomputed == 0
    assert probe.readings.of("stem.1", "values") == [16 * 36] * 3


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("set_to_none", [True, False])
@pytest.mark.parametrize("zero_late", [False, True])
@pytest.mark.parametrize("mixed", [False, True])
def test_steps_that_a_scaler_skips_are_counted(fused, set_to_none, zero_late, mixed):
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    with Probe(model, optimizer=optimizer, every=1) as probe:
        for index, (x, y) in enumerate(data(5)):
            if not zero_late:
                optimizer.zero_grad(set_to_none=set_to_none)
            with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
                loss = F.cross_entropy(model(x), y) * (math.inf if index == 2 else 1.0)
            if zero_late:
                optimizer.zero_grad(set_to_none=set_to_none)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
    assert probe.counts.skipped == 1
    assert probe.counts.steps == (5 if fused else 4)
    gradients = [g for g in probe.readings.of("1", "grad_norm") if math.isfinite(g)]
    assert max(gradients) < 10  # unscaled
    assert probe.counts.backwards == 5


def test_accumulation_is_no_skipped_step():
    model = net()
    optimizer = sgd(model)
    with Probe(model) as probe:
        for index, (x, y) in enumerate(data(8)):
            F.cross_entropy(model(x), y).backward()
            if index % 4 == 3:
                optimizer.step()
                optimizer.zero_grad()
    assert (probe.counts.skipped, probe.counts.steps, probe.counts.backwards) == (0, 2, 8)
    assert probe.counts.layers["1"].per_step == {4: 2}
    assert probe.counts.perturbed == 0


def test_gradients_for_their_own_sake_are_no_skipped_step():
    model = net()
    optimizer = sgd(model)
    with Probe(model) as probe:
        for x, y in data(3):
            x = x.clone().requires_grad_()
            (gradient,) = torch.autograd.grad(F.cross_entropy(model(x), y), x)  # an attack
            loop(model, optimizer, [((x + 0.1 * gradient.sign()).detach(), y)])
    assert (probe.counts.skipped, probe.counts.steps) == (0, 3)
    assert probe.counts.per_step == {2: 3}


class Sam(torch.optim.Optimizer):
    """Sharpness-aware minimization (Foret et al. 2021) around SGD, as people write it."""

    def __init__(self, parameters):
        super().__init__(parameters, {"rho": 0.05})
        self.base = torch.optim.SGD(self.param_groups, lr=0.1)

    @torch.no_grad()
    def step(self, closure=None):
        parameters = [p for group in self.param_groups for p in group["params"]]
        moves = [0.05 * p.grad for p in parameters]
        for p, move in zip(parameters, moves, strict=True):
            p.add_(move)
        with torch.enable_grad():
            closure()
        for p, move in zip(parameters, moves, strict=True):
            p.sub_(move)
        self.base.step()


def test_a_second_pass_on_moved_weights_is_seen():
    model = net()
    optimizer = Sam(list(model.parameters()))
    with Probe(model, optimizer=optimizer) as probe:
        for x, y in data(3):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()

            def again(x=x, y=y):
                optimizer.zero_grad()
                F.cross_entropy(model(x), y).backward()

            optimizer.step(again)
    assert (probe.counts.steps, probe.counts.perturbed, probe.counts.skipped) == (3, 3, 0)
    assert probe.counts.per_step == {2: 3}


def test_without_an_optimizer_of_torchs_the_parameters_tell():
    model = net()
    with Probe(model, every=1) as probe:
        for x, y in data(4):
            gradients = torch.autograd.grad(F.cross_entropy(model(x), y), list(model.parameters()))
            with torch.no_grad():
                for p, g in zip(model.parameters(), gradients, strict=True):
                    p.sub_(0.1 * g)
    assert probe.counts.steps == 3  # the last shows when the next pass begins
    assert len(probe.readings.steps) == 3
    assert "no optimizer of torch's stepped" in " ".join(probe.unseen)


def test_only_the_given_optimizers_steps_count():
    model, other = net(), net()
    mine, theirs = sgd(model), sgd(other)
    with Probe(model, optimizer=mine) as probe:
        loop(model, mine, data(3))
        loop(other, theirs, data(5))
    assert probe.counts.steps == 3
    assert probe.optimizer is mine


@pytest.mark.filterwarnings("ignore:`torch.jit.script")
@pytest.mark.parametrize("how", ["wrapped", "in place", "before"])
def test_what_torch_compile_runs_is_left_alone_and_told(how):
    def trained(probing):
        torch._dynamo.reset()
        model = net(dropout=0.2)
        optimizer = sgd(model)
        if how == "in place":
            model.compile(backend="aot_eager")
            runs = model
        else:
            runs = torch.compile(model, backend="aot_eager")
        if how == "before":
            loop(runs, optimizer, data(2))
        torch.manual_seed(7)
        if not probing:
            return loop(runs, optimizer, data(4)), model, None
        with Probe(runs, every=2) as probe:
            return loop(runs, optimizer, data(4)), model, probe

    losses, model, probe = trained(True)
    plain, other, _ = trained(False)
    assert losses == plain
    for a, b in zip(model.state_dict().values(), other.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    assert probe.counts.steps == 4
    (told,) = probe.unseen
    assert "2 of 2 normalization layers trained only within graphs of torch.compile" in told
    path = "1" if how == "in place" else "_orig_mod.1"
    assert probe.readings.of(path, "grad_norm")[0] > 0
    assert math.isnan(probe.readings.of(path, "input_mean")[0])
    assert not hooks_of(model)[3]


def test_a_layer_that_cannot_be_read_costs_no_training():
    class OddBatchNorm2d(nn.BatchNorm2d):
        @property
        def eps(self):
            return "small"

        @eps.setter
        def eps(self, value): ...

        def forward(self, x):
            return F.batch_norm(x, None, None, training=True)

    model = net()
    model[1] = OddBatchNorm2d(8)
    optimizer = sgd(model)
    with pytest.warns(UserWarning, match=r"cannot read 1 and goes on without it: TypeError"):  # noqa: SIM117
        with Probe(model, every=1) as probe:
            loop(model, optimizer, data(3))
    assert probe.counts.steps == 3
    assert math.isnan(probe.readings.of("1", "input_mean")[0])
    assert not math.isnan(probe.readings.of("5", "input_mean")[0])
    assert probe.unseen[0].startswith("1: TypeError")


def test_shared_half_tuple_and_single_value_layers_are_read():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
            self.short, self.vector = nn.LayerNorm(3).bfloat16(), nn.BatchNorm1d(3)

        def forward(self, x):
            x = self.norm(self.conv(self.norm(x)))
            x = x.mean((2, 3))
            return self.vector(self.short(x.bfloat16()).float())

    model = Odd()
    optimizer = sgd(model)
    with warnings.catch_warnings(), Probe(model, every=1) as probe:
        warnings.simplefilter("error")
        for x, _ in data(2):
            optimizer.zero_grad()
            model(x).square().sum().backward()
            optimizer.step()
    assert probe.counts.layers["norm"].per_step == {2: 2}
    assert probe.readings.of("norm", "values") == [2 * 16 * 36] * 2
    assert probe.readings.of("short", "input_var")[0] > 0
    assert probe.readings.of("vector", "values") == [16, 16]


def test_what_is_not_finite_is_named():
    model = net()
    optimizer = sgd(model)
    ((x, y),) = data(1)
    x[3, 1, 2, 2] = math.inf
    with Probe(model) as probe:
        loop(model, optimizer, [(x, y)])
    assert probe.readings.of("1", "non_finite") == [8]


def test_a_probe_is_used_once_and_asks_for_what_it_can_use():
    model = net()
    with Probe(model) as probe:
        pass
    with pytest.raises(UsageError, match="got a probe that has been used"), probe:
        pass
    with pytest.raises(UsageError, match=r"got list to probe; wanted a torch.nn.Module"):
        Probe([model])
    with pytest.raises(UsageError, match="got every=0; wanted 1 or more steps"):
        Probe(model, every=0)
    with pytest.raises(UsageError, match="SGD that has none of the model's parameters"):
        Probe(model, optimizer=sgd(copy.deepcopy(model)))
    with pytest.raises(UsageError, match="got str for optimizer"):
        Probe(model, optimizer="sgd")
    with pytest.raises(UsageError, match="got object; wanted a writer with add_scalar"):
        probe.log_to(object())


def test_it_tells_what_it_cost():
    model = net()
    optimizer = sgd(model)
    with Probe(model, every=2) as probe:
        loop(model, optimizer, data(6))
    cost = probe.overhead
    assert (cost.steps, cost.samples) == (6, 3)
    assert 0 < cost.seconds < cost.elapsed
    assert cost.share == pytest.approx(cost.seconds / (cost.elapsed - cost.seconds))
    assert cost.sampled_ms > cost.step_ms > 0
    elapsed = cost.elapsed
    assert cost.elapsed == elapsed  # it has ended
    assert repr(probe).startswith(
        "Probe(Sequential, 2 normalization layers: 6 steps, 3 read; overhead "
    )


def test_scalars_go_to_tensorboard(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from torch.utils.tensorboard import SummaryWriter

    model = net()
    optimizer = sgd(model)
    writer = SummaryWriter(str(tmp_path))
    probe = Probe(model, every=2)
    with probe:
        loop(model, optimizer, data(2))
        probe.log_to(writer)  # what was read before is told, too
        loop(model, optimizer, data(4))
    writer.close()
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    scalars = events.Scalars("z_median/5")
    assert [event.step for event in scalars] == [0, 2, 4]
    assert [event.value for event in scalars] == pytest.approx(probe.readings.of("5", "z_median"))
    assert "grad_norm/0" in events.Tags()["scalars"]


def test_scalars_of_a_training_that_goes_on_follow_those_before():
    class Writer(dict):
        def add_scalar(self, tag, value, step):
            self.setdefault(tag, []).append(step)

    model = net()
    optimizer = sgd(model)
    writer = Writer()
    with Probe(model, every=2) as probe:
        loop(model, optimizer, data(1))
        probe.log_to(writer, first_step=100)
        loop(model, optimizer, data(4))
    assert writer["z_median/5"] == [100, 102, 104]
