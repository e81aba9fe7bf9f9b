"""SL4xx: the training loop, as a probe has watched it."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from case_book import batches, blobs, case, small_net
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import spiritlevel as sl

X, Y = blobs()
PAIRS = batches(X, Y)


def optimizer_of(model, **options):
    return torch.optim.SGD(model.parameters(), lr=0.05, **options)


def step(model, optimizer, x, y):
    optimizer.zero_grad()
    F.cross_entropy(model(x), y).backward()
    optimizer.step()


# ---- SL401


def validate(model):
    with torch.no_grad():
        return sum(int((model(x).argmax(1) == y).sum()) for x, y in PAIRS[6:])


@case("SL401", "1")
def validates_in_train():
    model = small_net()
    optimizer = optimizer_of(model)
    with sl.Probe(model) as probe:
        for _ in range(3):
            for x, y in PAIRS[:6]:
                step(model, optimizer, x, y)
            validate(model)  # still in train()
    return dict(model=model, probe=probe)


@validates_in_train.twin
def _():
    model = small_net()
    optimizer = optimizer_of(model)
    with sl.Probe(model) as probe:
        for _ in range(3):
            for x, y in PAIRS[:6]:
                step(model, optimizer, x, y)
            validate(model.eval())
            model.train()
    return dict(model=model, probe=probe)


# ---- SL402


@case("SL402", "1")
def forgets_train_after_validation():
    model = small_net()
    optimizer = optimizer_of(model)
    with sl.Probe(model) as probe:
        for _ in range(3):
            for x, y in PAIRS[:6]:
                step(model, optimizer, x, y)
            validate(model.eval())  # and the next epoch trains in eval()
    return dict(model=model, probe=probe)


@forgets_train_after_validation.twin
def _():
    model = small_net()
    optimizer = optimizer_of(model)
    with sl.Probe(model) as probe:
        for _ in range(3):
            model.train()
            for x, y in PAIRS[:6]:
                step(model, optimizer, x, y)
            validate(model.eval())
    return dict(model=model, probe=probe)


@case("SL402", "1", severity="warning")
def trains_from_scratch_in_eval():
    model = small_net().eval()
    optimizer = optimizer_of(model)
    with sl.Probe(model) as probe:
        for x, y in PAIRS:
            step(model, optimizer, x, y)
    return dict(model=model, probe=probe)


@trains_from_scratch_in_eval.twin
def _():
    model = small_net().train()
    optimizer = optimizer_of(model)
    with sl.Probe(model) as probe:
        for x, y in PAIRS:
            step(model, optimizer, x, y)
    return dict(model=model, probe=probe)


# ---- SL403


def trained_then_frozen():
    """All but the head without gradients."""
    model = small_net()
    optimizer = optimizer_of(model)
    for x, y in PAIRS * 3:
        step(model, optimizer, x, y)
    model[:6].requires_grad_(False)
    return model


@case("SL403", "1")
def frozen_part_keeps_counting():
    model = trained_then_frozen()
    optimizer = optimizer_of(model[8])
    with sl.Probe(model) as probe:
        for x, y in PAIRS:
            step(model.train(), optimizer, x + 3, y)
    model.eval()
    return dict(model=model, probe=probe)


@frozen_part_keeps_counting.twin
def _():
    model = trained_then_frozen()
    optimizer = optimizer_of(model[8])
    with sl.Probe(model) as probe:
        for x, y in PAIRS:
            model.train()
            model[:6].eval()
            step(model, optimizer, x + 3, y)
    return dict(model=model, probe=probe)


# ---- SL404


class Checkpointed(nn.Module):
    def __init__(self, momentum=0.1):
        super().__init__()
        net = small_net()
        self.body, self.head = net[:6], net[6:]
        for norm in (self.body[1], self.body[4]):
            norm.momentum = momentum

    def forward(self, x):
        return self.head(checkpoint(self.body, x, use_reentrant=False))


@case("SL404", "body.1")
def checkpointed_norms_count_twice():
    model = Checkpointed()
    optimizer = optimizer_of(model)
    with sl.Probe(model) as probe:
        for x, y in PAIRS * 3:
            step(model, optimizer, x, y)
    return dict(model=model, probe=probe)


@checkpointed_norms_count_twice.twin
def _():
    model = Checkpointed(momentum=1 - math.sqrt(1 - 0.1))
    optimizer = optimizer_of(model)
    with sl.Probe(model) as probe:
        for x, y in PAIRS * 3:
            step(model, optimizer, x, y)
    return dict(model=model, probe=probe)


# ---- SL405


def sam_step(model, optimizer, x, y, before_second):
    """Sharpness-aware minimization, Foret et al. 2021."""
    optimizer.zero_grad()
    F.cross_entropy(model(x), y).backward()
    with torch.no_grad():
        moves = [0.05 * p.grad for p in model.parameters()]
        for p, move in zip(model.parameters(), moves, strict=True):
            p.data.add_(move)
    before_second(model)
    optimizer.zero_grad()
    F.cross_entropy(model(x), y).backward()
    with torch.no_grad():
        for p, move in zip(model.parameters(), moves, strict=True):
            p.data.sub_(move)
    optimizer.step()


def set_momentum(model, momentum):
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = momentum


@case("SL405", "1")
def sam_writes_on_moved_weights():
    model = small_net()
    optimizer = optimizer_of(model)
    with sl.Probe(model) as probe:
        for x, y in PAIRS * 2:
            sam_step(model, optimizer, x, y, lambda model: None)
    return dict(model=model, probe=probe)


@sam_writes_on_moved_weights.twin
def _():
    model = small_net()
    optimizer = optimizer_of(model)
    with sl.Probe(model) as probe:
        for x, y in PAIRS * 2:
            sam_step(model, optimizer, x, y, lambda model: set_momentum(model, 0))
            set_momentum(model, 0.1)
    return dict(model=model, probe=probe)


# ---- SL406


def accumulate(model, pairs):
    optimizer = optimizer_of(model)
    with sl.Probe(model) as probe:
        for index, (x, y) in enumerate(pairs * 4):
            (F.cross_entropy(model(x), y) / 4).backward()
            if index % 4 == 3:
                optimizer.step()
                optimizer.zero_grad()
    return probe


@case("SL406", "1")
def accumulates_over_four_passes():
    model = small_net()
    return dict(model=model, probe=accumulate(model, PAIRS))


@accumulates_over_four_passes.twin
def _():
    model = sl.convert(small_net(), "group:4")
    return dict(model=model, probe=accumulate(model, PAIRS))


# ---- SL407 and SL413


def with_scaler(model, pairs):
    optimizer = optimizer_of(model)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    with sl.Probe(model, every=1) as probe:
        for x, y in pairs:
            optimizer.zero_grad()
            scaler.scale(F.cross_entropy(model(x), y)).backward()
            scaler.step(optimizer)
            scaler.update()
    return probe


@case("SL407", "1")
def overflow_is_kept_in_the_statistics():
    model = small_net()
    spoiled = PAIRS[2][0].clone()
    spoiled[0, 0, 0, 0] = math.inf
    pairs = [*PAIRS[:2], (spoiled, PAIRS[2][1]), *PAIRS[3:]]
    return dict(model=model, probe=with_scaler(model, pairs))


@overflow_is_kept_in_the_statistics.twin
def _():
    model = small_net()
    return dict(model=model, probe=with_scaler(model, PAIRS * 3))


@case("SL413", "4")
def a_division_by_zero_before_a_norm():
    class Divides(nn.Module):
        def forward(self, x):
            return x / x.amax((2, 3), keepdim=True)

    model = small_net()
    with torch.no_grad():
        model[1].weight[3], model[1].bias[3] = 0, -1  # ReLU makes zeros of this channel
    model[2] = nn.Sequential(nn.ReLU(), Divides())
    optimizer = optimizer_of(model)
    with sl.Probe(model) as probe:
        step(model, optimizer, *PAIRS[0])
    return dict(model=model, probe=probe)


@a_division_by_zero_before_a_norm.twin
def _():
    class Divides(nn.Module):
        def forward(self, x):
            return x / x.amax((2, 3), keepdim=True).clamp_min(1e-3)

    model = small_net()
    model[2] = nn.Sequential(nn.ReLU(), Divides())
    optimizer = optimizer_of(model)
    with sl.Probe(model) as probe:
        step(model, optimizer, *PAIRS[0])
    return dict(model=model, probe=probe)


# ---- SL408


def discriminate(model, real_and_made):
    """Real images towards 1, made ones towards 0, in passes of their own."""
    optimizer = optimizer_of(model)
    with sl.Probe(model, every=4) as probe:
        for real, made in real_and_made:
            optimizer.zero_grad()
            F.softplus(-model(real)).mean().backward()
            F.softplus(model(made)).mean().backward()
            optimizer.step()
    return probe


@case("SL408", "1")
def discriminator_of_two_kinds_in_turn():
    model = small_net(classes=1)
    made = [x * 0.3 + 8 for x, _ in PAIRS]
    return dict(
        model=model, probe=discriminate(model, zip([x for x, _ in PAIRS], made, strict=True))
    )


@discriminator_of_two_kinds_in_turn.twin
def _():
    model = sl.convert(small_net(classes=1), "group:4")
    made = [x * 0.3 + 8 for x, _ in PAIRS]
    return dict(
        model=model, probe=discriminate(model, zip([x for x, _ in PAIRS], made, strict=True))
    )


# ---- SL409


def vector_net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Flatten(), nn.Linear(108, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)
    )


def trained_on(model, pairs):
    optimizer = optimizer_of(model)
    with sl.Probe(model) as probe:
        for x, y in pairs:
            step(model, optimizer, x, y)
    return probe


@case("SL409", "2")
def two_samples_a_batch():
    model = vector_net()
    return dict(model=model, probe=trained_on(model, batches(X[:64], Y[:64], 2)))


@two_samples_a_batch.twin
def _():
    model = vector_net()
    return dict(model=model, probe=trained_on(model, PAIRS * 4))


@case("SL409", "2", severity="info")
def incomplete_last_batch():
    model = vector_net()
    return dict(model=model, probe=trained_on(model, batches(X[:99], Y[:99], 32) * 8))


@incomplete_last_batch.twin
def _():
    model = vector_net()
    return dict(model=model, probe=trained_on(model, batches(X[:96], Y[:96], 32) * 8))


# ---- SL410


@case("SL410", "1")
def weight_decay_on_everything():
    model = small_net()
    optimizer = optimizer_of(model, weight_decay=5e-4)
    with sl.Probe(model, optimizer=optimizer) as probe:
        for x, y in PAIRS * 2:
            step(model, optimizer, x, y)
    return dict(model=model, probe=probe)


@weight_decay_on_everything.twin
def _():
    model = small_net()
    weights = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() == 1]
    optimizer = torch.optim.SGD(
        [{"params": weights, "weight_decay": 5e-4}, {"params": others}], lr=0.05
    )
    with sl.Probe(model, optimizer=optimizer) as probe:
        for x, y in PAIRS * 2:
            step(model, optimizer, x, y)
    return dict(model=model, probe=probe)


# ---- SL411


class Residual(nn.Module):
    """x + branch(x), the branch's last gamma zero at the start (Goyal et al. 2017)."""

    def __init__(self):
        super().__init__()
        net = small_net()
        self.stem, self.branch, self.head = net[:3], net[3:5], net[6:]
        nn.init.zeros_(self.branch[1].weight)

    def forward(self, x):
        x = self.stem(x)
        return self.head((x + self.branch(x)).relu())


@case("SL411", "branch.4")
def zero_gamma_that_no_optimizer_has():
    model = Residual()
    known = [*model.stem.parameters(), *model.head.parameters()]
    optimizer = torch.optim.SGD(known, lr=0.05)
    with sl.Probe(model) as probe:
        for x, y in PAIRS * 3:
            step(model, optimizer, x, y)
    return dict(model=model, probe=probe)


@zero_gamma_that_no_optimizer_has.twin
def _():
    model = Residual()
    optimizer = optimizer_of(model)
    with sl.Probe(model) as probe:
        for x, y in PAIRS * 3:
            step(model, optimizer, x, y)
    return dict(model=model, probe=probe)


# ---- SL412


def in_one_process(model, **options):
    torch.distributed.init_process_group(
        "gloo", store=torch.distributed.HashStore(), rank=0, world_size=1
    )
    wrapped = nn.parallel.DistributedDataParallel(model, **options)
    optimizer = optimizer_of(model)
    try:
        with sl.Probe(wrapped) as probe:
            for (x, y), (other, label) in pairwise(PAIRS):
                optimizer.zero_grad()
                losses = F.cross_entropy(wrapped(x), y), F.cross_entropy(wrapped(other), label)
                sum(losses).backward()
                optimizer.step()
    finally:
        torch.distributed.destroy_process_group()
    return probe


@case("SL412", "1")
def two_passes_while_buffers_are_sent():
    model = small_net()
    return dict(model=model, probe=in_one_process(model))


@two_passes_while_buffers_are_sent.twin
def _():
    model = small_net()
    return dict(model=model, probe=in_one_process(model, forward_sync_buffers=False))
