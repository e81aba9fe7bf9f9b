import inspect
import math
from collections import Counter

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from spiritlevel import probe
from spiritlevel.data import Pixels
from spiritlevel.lent.guard import undisturbed
from spiritlevel.models import create_model
from spiritlevel.train import SGD, score, train

N, CLASSES = 50, 3


def data(n=N, seed=0):
    """Noise, and a bright row that tells the class."""
    x = torch.randn(n, 1, 6, 6, generator=torch.Generator().manual_seed(seed))
    y = torch.arange(n) % CLASSES
    x[torch.arange(n), 0, y] += 2
    return x, y


def make(norm="batch", seed=0, dropout=0.0):
    """With `dropout`, or a noisy norm, every forward pass in training mode draws random numbers."""
    torch.manual_seed(seed)
    model = create_model("mlp", CLASSES, norm, in_chans=1, image_size=6, depth=2, width=8)
    model.hidden.append(nn.Dropout(dropout))
    return model


SETTINGS = {"lr": 0.1, "steps": 14, "batch_size": 8, "seed": 3}


def epochs(n, batch_size, seed):
    """Row numbers of each batch: a new permutation an epoch, its incomplete end dropped."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        rows = torch.randperm(n, generator=generator).tolist()
        while len(rows) >= batch_size:
            yield [rows.pop(0) for _ in range(batch_size)]


def train_by_hand(model, x, y, *, lr, steps, batch_size, seed, momentum=0.0):
    """The textbook: v <- momentum v + g, w <- w - lr v."""
    losses, accuracies = [], []
    velocity = [torch.zeros_like(p) for p in model.parameters()]
    model.train()
    for _, rows in zip(range(steps), epochs(len(x), batch_size, seed), strict=False):
        logits = model(x[rows])
        loss = F.cross_entropy(logits, y[rows])
        losses.append(loss.item())
        answers = [max(range(CLASSES), key=row.__getitem__) for row in logits.tolist()]
        accuracies.append(
            sum(a == y[r].item() for a, r in zip(answers, rows, strict=True)) / batch_size
        )
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        with torch.no_grad():
            for p, v, g in zip(model.parameters(), velocity, gradients, strict=True):
                v.mul_(momentum).add_(g)
                p.add_(v, alpha=-lr)
    return losses, accuracies


def assert_same_weights(model, other):
    torch.testing.assert_close(model.state_dict(), other.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("norm", ["none", "batch"])
def test_it_is_the_hand_written_loop_bit_for_bit(norm, momentum):
    model, twin = make(norm), make(norm)
    curve = train(model.eval(), *data(), **SETTINGS, momentum=momentum)
    losses, accuracies = train_by_hand(twin, *data(), **SETTINGS, momentum=momentum)
    assert curve.loss == losses
    assert curve.accuracy == accuracies  # eighths, which floats hold exactly
    assert curve.diverged_at is None
    assert_same_weights(model, twin)
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_sgd_is_torchs_bit_for_bit(momentum):
    (x, y), model, twin = data(), make("batch"), make("batch")
    ours = SGD(model, lr=0.1, momentum=momentum)
    torchs = torch.optim.SGD(twin.parameters(), lr=0.1, momentum=momentum)
    for _ in range(4):
        ours.descend(F.cross_entropy(model(x), y))
        torchs.zero_grad()
        F.cross_entropy(twin(x), y).backward()
        torchs.step()
    assert_same_weights(model, twin)


class Fork(nn.Module):
    """Three layers, of which a pass uses those it is told to, the last always."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleDict({name: nn.Linear(6, 6) for name in ("left", "right", "never")})
        self.last = nn.Linear(6, CLASSES)

    def forward(self, x, used):
        return self.last(sum(self.layers[name](x) for name in used).tanh())


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_what_the_loss_does_not_use_stays_and_keeps_its_momentum(momentum):
    models = []
    for _ in range(2):
        torch.manual_seed(0)
        models.append(Fork())
    model, twin = models
    start = make_copy(model)
    ours = SGD(model, lr=0.1, momentum=momentum)
    torchs = torch.optim.SGD(twin.parameters(), lr=0.1, momentum=momentum)
    x, y = torch.randn(9, 6), torch.arange(9) % CLASSES
    for used in (["left"], ["right"], ["right"], ["left", "right"], ["left"]):
        before = make_copy(model)
        ours.descend(F.cross_entropy(model(x, used), y))
        torchs.zero_grad()
        F.cross_entropy(twin(x, used), y).backward()
        torchs.step()
        assert_same_weights(model, twin)
        for name, weight in model.state_dict().items():
            moved = name.split(".")[1] in (*used, "weight", "bias")
            assert torch.equal(weight, before[name]) != moved
    assert torch.equal(model.layers["never"].weight, start["layers.never.weight"])
    buffers = [torchs.state[p].get("momentum_buffer") for p in twin.parameters()]
    for mine, theirs in zip(ours.buffers, buffers, strict=True):
        assert (mine is None) == (theirs is None)
        assert mine is None or torch.equal(mine, theirs)
    assert sum(b is not None for b in buffers) == (6 if momentum else 0)
    assert all(p.grad is None for p in model.parameters())


def make_copy(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def test_frozen_parameters_stay():
    (x, y), model = data(), make("batch")
    model.hidden[0].linear.weight.requires_grad_(False)
    before = make_copy(model)
    train(model, x, y, **SETTINGS)
    same = {name for name, value in model.state_dict().items() if torch.equal(value, before[name])}
    assert "hidden.0.linear.weight" in same
    assert not {name for name in same if name.endswith("weight")} - {"hidden.0.linear.weight"}


def test_the_seed_orders_the_batches_and_nothing_else():
    x, y = data()
    models = [make() for _ in range(3)]
    torch.manual_seed(12345)
    random_state = torch.get_rng_state()
    first, again, other = (
        train(model, x, y, **{**SETTINGS, "seed": seed}).loss
        for model, seed in zip(models, (3, 3, 4), strict=True)
    )
    assert first == again
    assert sorted(first) != sorted(other)
    assert torch.equal(torch.get_rng_state(), random_state)


def test_each_image_is_seen_once_an_epoch():
    x, y = data()
    seen = []
    train(
        make(), x, y, **{**SETTINGS, "steps": 6},
        observe=lambda _step, xb, _y: seen.extend(map(tuple, xb.flatten(1).tolist())),
    )  # fmt: skip
    assert len(seen) == 48
    assert max(Counter(seen).values()) == 1


def batches_seen(seed=3, **options):
    """What `observe` was shown, and the curve."""
    model, random_state = make(), torch.get_rng_state()
    seen = []
    curve = train(
        model, *data(), **{**SETTINGS, "seed": seed}, **options,
        observe=lambda _step, xb, yb: seen.append((xb.clone(), yb.clone())),
    )  # fmt: skip
    assert torch.equal(torch.get_rng_state(), random_state)
    return seen, curve


def moved_by_hand(image, top, left, flip):
    """(C, H, W), 4 pixels of nothing around it, seen from `top`, `left`; mirrored if `flip`."""
    height, width = image.shape[-2:]
    moved = torch.zeros_like(image)
    for row in range(height):
        for column in range(width):
            r, c = row + top - 4, (width - 1 - column if flip else column) + left - 4
            if 0 <= r < height and 0 <= c < width:
                moved[:, row, column] = image[:, r, c]
    return moved


def is_moved(image, original):
    return any(
        torch.equal(image, moved_by_hand(original, top, left, flip))
        for top in range(9)
        for left in range(9)
        for flip in (False, True)
    )


def test_augmented_batches_are_crops_and_mirror_images_of_those_drawn():
    x, y = data()
    seen, curve = batches_seen(augment=True)
    # The first epoch's order is drawn before anything is moved: the same with and without.
    drawn = epochs(N, SETTINGS["batch_size"], SETTINGS["seed"])
    for (xb, yb), rows, _ in zip(seen, drawn, range(N // SETTINGS["batch_size"]), strict=False):
        assert torch.equal(yb, y[rows])
        assert not torch.equal(xb, x[rows])
    for image, row in zip(seen[0][0], next(epochs(N, 8, 3)), strict=True):
        assert is_moved(image, x[row])
    again, same_curve = batches_seen(augment=True)
    assert curve == same_curve
    assert all(torch.equal(a, b) for (a, _), (b, _) in zip(seen, again, strict=True))
    assert batches_seen(augment=True, seed=4)[1] != curve
    assert batches_seen()[1] != curve


def test_what_was_augmented_is_what_is_trained_on():
    seen, curve = batches_seen(augment=True)
    model = make().train()
    with torch.no_grad():
        assert F.cross_entropy(model(seen[0][0]), seen[0][1]).item() == curve.loss[0]


def pixels():
    """Bytes as a source holds them, read at half their size and standardised."""
    generator = torch.Generator().manual_seed(0)
    raw = torch.randint(256, (N, 1, 12, 12), generator=generator, dtype=torch.uint8)
    mean, std = torch.tensor([0.4], dtype=torch.float64), torch.tensor([0.2], dtype=torch.float64)
    return Pixels(raw, 6, mean, std), torch.arange(N) % CLASSES


@pytest.mark.parametrize("augment", [False, True])
def test_training_on_bytes_is_training_on_what_they_stand_for(augment):
    x, y = pixels()
    model, twin = make(), make()
    curve = train(model, x, y, **SETTINGS, augment=augment)
    assert curve == train(twin, x[:], y, **SETTINGS, augment=augment)
    assert_same_weights(model, twin)


@pytest.mark.parametrize("every", [1, 4])
def test_observe_sees_each_batch_before_its_update_in_training_mode(every):
    x, y = data()
    model, seen = make(), []

    def observe(step, xb, yb):
        assert all(module.training for module in model.modules())
        with undisturbed(model):
            seen.append((step, F.cross_entropy(model(xb), yb).item()))

    curve = train(model.eval(), x, y, **SETTINGS, observe=observe, every=every)
    assert seen == list(enumerate(curve.loss))[::every]


def test_divergence_ends_the_run_and_is_recorded():
    x, y = data()
    settings = {**SETTINGS, "lr": 1e12, "steps": 50}
    model = make("none")
    curve = train(model, x, y, **settings)
    assert 0 < curve.diverged_at < 49
    assert len(curve.loss) == len(curve.accuracy) == curve.diverged_at + 1
    assert not math.isfinite(curve.loss[-1])
    assert all(map(math.isfinite, curve.loss[:-1]))
    before = make("none")  # a loss that is not finite makes no step
    train(before, x, y, **{**settings, "steps": curve.diverged_at})
    torch.testing.assert_close(
        model.state_dict(), before.state_dict(), rtol=0, atol=0, equal_nan=True
    )


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_divergence_at_the_first_step(value):
    x, y = data()
    model = make("none")
    curve = train(model, torch.full_like(x, value), y, **SETTINGS)
    assert curve.diverged_at == 0
    assert len(curve.loss) == 1
    assert_same_weights(model, make("none"))


def disturb(model, x, y):
    with undisturbed(model):
        optimizer = torch.optim.Adam(model.parameters(), lr=1.0)
        F.cross_entropy(model.train()(x), y).backward()
        optimizer.step()
        torch.manual_seed(0)
        model.eval()


def behind_norm(weight, u):
    return F.batch_norm(u @ weight.T, None, None, training=True).square().square().sum()


OBSERVERS = {
    "along_gradient": lambda m, x, y: probe.along_gradient(m, x, y, steps=(0.05, 1e9)),
    "batch_noise": lambda m, x, _: probe.batch_noise(
        m, x[:2], x, batch_size=4, draws=2, generator=torch.Generator(), layers=["hidden.0"]
    ),
    "covariate_shift": lambda m, x, y: probe.covariate_shift(m, x, y, lr=1.0),
    "effective_rate": lambda m, *_: probe.effective_rate(0.1, m.hidden[0].linear.weight),
    "gradient_cosine": lambda m, x, _: probe.gradient_cosine(
        behind_norm, m.hidden[0].linear.weight, x.flatten(1)
    ),
    "growth_per_layer": lambda m, *_: probe.growth_per_layer(
        [p.abs().max().item() for p in m.parameters()]
    ),
    "input_moments": lambda m, x, _: [
        probe.input_moments(m, x, training=mode) for mode in (True, False)
    ],
    "scaling_errors": lambda m, x, _: probe.scaling_errors(
        behind_norm, m.hidden[0].linear.weight, x.flatten(1), scale=100.0
    ),
    "norm_places": lambda m, *_: probe.norm_places(m),
    "normalised_weights": lambda m, x, _: probe.normalised_weights(m, x),
    "score": lambda m, x, y: [
        score(m, x, y, batch_size=4, training=mode) for mode in (True, False)
    ],
    "signal_by_depth": lambda m, x, y: probe.signal_by_depth(m, x, y),
    "undisturbed": disturb,
    "unit_percentiles": lambda m, x, _: [
        probe.unit_percentiles(m, x, training=mode, outputs=mode) for mode in (True, False)
    ],
    "weight_layers": lambda m, *_: probe.weight_layers(m),
    "weight_scaling": lambda m, x, y: probe.weight_scaling(
        m, x, y, "hidden.0.linear", scales=(0.1, 1e9)
    ),
}


def test_every_probe_is_held_to_the_promise():
    public = {name for name in probe.__all__ if inspect.isfunction(getattr(probe, name))}
    assert OBSERVERS.keys() == public | {"score", "undisturbed"}


@pytest.mark.parametrize("norm", ["batch", "noisy-batch", "none"])
@pytest.mark.parametrize("name", OBSERVERS)
def test_measuring_changes_no_bit_of_the_training(name, norm):
    x, y = data()
    settings = {**SETTINGS, "steps": 7, "momentum": 0.9}
    measured, alone = make(norm, dropout=0.3), make(norm, dropout=0.3)
    torch.manual_seed(1)
    calls = []

    def observe(step, xb, yb):
        calls.append(step)
        OBSERVERS[name](measured, xb, yb)

    curve = train(measured, x, y, **settings, observe=observe, every=2)
    random_state = torch.get_rng_state()
    torch.manual_seed(1)
    assert curve == train(alone, x, y, **settings)
    assert calls == [0, 2, 4, 6]
    assert torch.equal(random_state, torch.get_rng_state())
    assert_same_weights(measured, alone)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in measured.modules())


def score_by_hand(model, x, y):
    """Image by image, in eval mode."""
    losses, hits = [], 0
    for image, label in zip(x, y.tolist(), strict=True):
        (logits,) = model.eval()(image[None]).detach().double()
        losses.append(-torch.log_softmax(logits, 0)[label].item())
        hits += logits.argmax().item() == label
    return math.fsum(losses) / len(x), hits / len(x)


@pytest.mark.parametrize("batch_size", [1, 7, 50, 500])
@pytest.mark.parametrize("norm", ["none", "batch"])
def test_score_is_the_mean_over_images_however_they_are_fed(norm, batch_size):
    x, y = data()
    model = make(norm)
    train(model, x, y, **SETTINGS)
    got = score(model, x, y, batch_size=batch_size)
    loss, accuracy = score_by_hand(model, x, y)
    assert got.loss == pytest.approx(loss, rel=1e-5)
    assert got.accuracy == accuracy
    assert accuracy > 0.5


@pytest.mark.parametrize("batch_size", [7, 50])
@pytest.mark.parametrize("training", [True, False])
def test_score_on_bytes_is_score_on_what_they_stand_for(training, batch_size):
    x, y = pixels()
    model = make("batch")
    train(model, x, y, **SETTINGS)
    read = {"batch_size": batch_size, "training": training}
    assert score(model, x, y, **read) == score(model, x[:], y, **read)
    if not training:
        loss, accuracy = score_by_hand(model, x[:], y)
        assert score(model, x, y, **read).loss == pytest.approx(loss, rel=1e-5)
        assert score(model, x, y, **read).accuracy == accuracy


def test_score_in_training_mode_takes_the_statistics_of_each_batch():
    x, y = data()
    model = make("batch")
    train(model, x, y, **SETTINGS)
    got = score(model, x, y, batch_size=20, training=True)
    model.train()
    with torch.no_grad():
        total = sum(
            F.cross_entropy(model(x[rows]), y[rows]).item() * len(x[rows])
            for rows in (slice(0, 17), slice(17, 34), slice(34, 50))
        )
    assert got.loss == pytest.approx(total / N, rel=1e-6)
    assert got.loss != score(model, x, y, batch_size=20).loss


@pytest.mark.parametrize("training", [True, False])
def test_score_leaves_the_model_as_it_was(training):
    x, y = data()
    model, untouched = make("noisy-batch", dropout=0.5), make("noisy-batch", dropout=0.5)
    model.hidden[0].eval()
    torch.manual_seed(1)
    random_state = torch.get_rng_state()
    score(model, x, y, training=training)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert_same_weights(model, untouched)
    assert model.training
    assert not model.hidden[0].training


def test_score_in_training_mode_of_one_image_more_than_a_batch():
    x, y = data(21)
    assert math.isfinite(score(make("batch"), x, y, batch_size=20, training=True).loss)
