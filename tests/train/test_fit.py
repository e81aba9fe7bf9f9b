import pytest
import torch
from torch import nn
from torch.nn import functional as F

from spiritlevel.errors import UsageError
from spiritlevel.models import create_model
from spiritlevel.train import Recipe, fit, learning_rate, mix

N, CLASSES = 22, 3


def data():
    x = torch.randn(N, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    y = torch.arange(N) % CLASSES
    x[torch.arange(N), 0, y] += 2
    return x, y


def make(norm="batch"):
    torch.manual_seed(0)
    return create_model("mlp", CLASSES, norm, in_chans=1, image_size=6, depth=2, width=8)


def recipe(**options):
    return Recipe(**({"lr": 0.2, "epochs": 3, "batch_size": 8, "weight_decay": 0.01} | options))


def by_hand(model, x, y, made, seed):
    """The textbook, with weight decay on matrices alone."""
    generator = torch.Generator().manual_seed(seed)
    velocity = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    average, losses, step = None, [], 0
    model.train()
    for _ in range(made.epochs):
        order = torch.randperm(len(x), generator=generator)
        for rows in order.split(made.batch_size)[: len(x) // made.batch_size]:
            lr = learning_rate(made, step, len(x) // made.batch_size)
            parts = [
                F.cross_entropy(model(x[part]), y[part], label_smoothing=made.label_smoothing)
                for part in rows.split(made.batch_size // made.accumulate)
            ]
            loss = sum(parts) / len(parts)
            losses.append(loss.item())
            gradients = torch.autograd.grad(loss, list(model.parameters()))
            if made.clip_norm:
                norm = torch.cat([g.flatten() for g in gradients]).norm()
                gradients = [g * min(1, made.clip_norm / (norm + 1e-6)) for g in gradients]
            with torch.no_grad():
                for (name, p), g in zip(model.named_parameters(), gradients, strict=True):
                    g = g + (made.weight_decay * p if p.dim() > 1 else 0)
                    v = velocity[name].mul_(made.momentum).add_(g)
                    p -= lr * (g + made.momentum * v if made.nesterov else v)
            state = {name: value.clone() for name, value in model.state_dict().items()}
            d = min(made.ema_decay, (1 + step) / (10 + step)) if step else 0
            average = {
                name: d * average[name] + (1 - d) * value if step and value.is_floating_point()
                else value
                for name, value in state.items()
            }  # fmt: skip
            step += 1
    return losses, average


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"nesterov": True, "label_smoothing": 0.1, "warmup_epochs": 1, "warmup_lr": 0.05},
        {"schedule": "steps", "milestones": [1, 2], "ema_decay": 0.9},
        {"accumulate": 2},
        {"clip_norm": 0.1},
    ],
)
@pytest.mark.parametrize("norm", ["none", "batch"])
def test_it_is_the_hand_written_loop(norm, options):
    made, model, twin = recipe(**options), make(norm), make(norm)
    fitted = fit(model.eval(), *data(), made, seed=5)
    losses, average = by_hand(twin, *data(), made, seed=5)
    close = {"rtol": 1e-4, "atol": 1e-6}
    torch.testing.assert_close(fitted.curve.loss, losses, **close)
    torch.testing.assert_close(model.state_dict(), twin.state_dict(), **close)
    assert len(losses) == made.epochs * (N // made.batch_size)
    if made.ema_decay:
        torch.testing.assert_close(dict(fitted.average.state_dict()), average, **close)
    else:
        assert fitted.average is None


@pytest.mark.parametrize("mixing", [{"mixup": 0.4}, {"cutmix": 1.0}, {"mixup": 0.4, "cutmix": 1}])
def test_it_trains_on_what_is_mixed(mixing):
    curves = [
        fit(make(), *data(), recipe(**one), seed=5).curve.loss for one in (mixing, mixing, {})
    ]
    assert curves[0] == curves[1] != curves[2]


def test_it_crops_and_flips():
    x, y = data()
    curves = [
        fit(make(), x, y, recipe(), seed=5, augment=a).curve.loss for a in (True, True, False)
    ]
    assert curves[0] == curves[1] != curves[2]


def test_it_ends_where_the_loss_does():
    fitted = fit(make("none"), *data(), recipe(lr=1e20), seed=5)
    assert fitted.curve.diverged_at == len(fitted.curve.loss) - 1 < 5


def test_a_batch_larger_than_the_images_is_refused():
    with pytest.raises(UsageError, match=f"batch size 64, wanted 1 to {N}"):
        fit(make(), *data(), recipe(batch_size=64), seed=5)


def test_mixup_is_a_blend_of_two():
    x = torch.randn(5, 2, 4, 4)
    for seed in range(5):
        blended, other, share = mix(x, mixup=0.3, generator=torch.Generator().manual_seed(seed))
        assert 0 <= share <= 1
        torch.testing.assert_close(blended, share * x + (1 - share) * x[other])


def test_cutmix_takes_a_rectangle_and_counts_it():
    own, sizes = torch.zeros(6, 1, 8, 10), set()
    own += torch.arange(6.0).view(6, 1, 1, 1)
    before = own.clone()
    for seed in range(30):
        blended, other, share = mix(own, cutmix=1.0, generator=torch.Generator().manual_seed(seed))
        taken = blended != own
        for row, rows_taken in enumerate(taken[:, 0]):
            if other[row] == row:
                continue
            places = rows_taken.nonzero()
            assert len(places) == round((1 - share) * 80)
            if len(places):
                height, width = (places.amax(0) - places.amin(0) + 1).tolist()
                assert height * width == len(places)  # it is whole
                assert set(blended[row][rows_taken[None]].tolist()) == {float(other[row])}
        sizes.add(share)
    assert len(sizes) > 15
    torch.testing.assert_close(own, before, rtol=0, atol=0)


def test_shares_are_drawn_from_beta():
    generator = torch.Generator().manual_seed(0)
    x = torch.zeros(1, 1, 1, 1)
    shares = torch.tensor([mix(x, mixup=0.5, generator=generator)[2] for _ in range(4000)])
    # Beta(a, a) has mean 1/2 and variance 1 / (4 (2 a + 1)).
    assert shares.mean().item() == pytest.approx(0.5, abs=0.02)
    assert shares.var().item() == pytest.approx(1 / 8, abs=0.01)


def test_the_smoothed_loss_of_both_classes_is_that_of_the_blended_target():
    """Why shares of losses will do."""
    logits, y, other, share = torch.randn(6, 4), torch.arange(6) % 4, torch.randperm(6), 0.3
    criterion = nn.CrossEntropyLoss(label_smoothing=0.1)
    target = share * F.one_hot(y, 4) + (1 - share) * F.one_hot(y[other], 4)
    both = share * criterion(logits, y) + (1 - share) * criterion(logits, y[other])
    torch.testing.assert_close(both, criterion(logits, target))
