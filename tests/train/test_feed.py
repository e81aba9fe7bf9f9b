import pytest
import torch

from spiritlevel.data import Pixels
from spiritlevel.errors import UsageError
from spiritlevel.train import Recipe
from spiritlevel.train.feed import Feed

N = 45


def pixels():
    generator = torch.Generator().manual_seed(0)
    return Pixels(torch.randint(256, (N, 3, 9, 9), generator=generator, dtype=torch.uint8), 9)


def feed(rank=0, ranks=1, *, seed=3, augment="none", **options):
    recipe = Recipe(**({"lr": 0.1, "epochs": 2, "batch_size": 10} | options))
    rows = torch.arange(N)[N - 42 :]
    y = torch.arange(N)
    return Feed(pixels(), y, rows, recipe, seed=seed, augment=augment, rank=rank, ranks=ranks)


def test_an_epoch_sees_each_image_at_most_once_and_only_its_own():
    one = feed()
    seen = torch.cat([one.parts(step)[0].y for step in range(one.steps_per_epoch)])
    assert one.steps_per_epoch == 4
    assert len(set(seen.tolist())) == 40
    assert seen.min() >= N - 42


def test_each_epoch_has_an_order_of_its_own():
    one = feed()
    orders = [torch.cat([one.parts(e * 4 + s)[0].y for s in range(4)]) for e in range(3)]
    assert len({tuple(order.tolist()) for order in orders}) == 3


def test_a_step_needs_none_before_it():
    options = {"augment": "crop-flip", "mixup": 0.4, "cutmix": 1.0}
    going = feed(**options)
    seen = [going.parts(step) for step in range(9)]
    again = feed(**options).parts(8)
    assert torch.equal(seen[8][0].x, again[0].x)
    assert not torch.equal(seen[7][0].x, again[0].x)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"augment": "crop"},
        {"augment": "crop-flip", "mixup": 0.4},
        {"augment": "crop-flip", "cutmix": 1.0, "accumulate": 2},
        {"accumulate": 5},
    ],
)
@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_processes_share_what_one_sees(options, ranks):
    for step in (0, 5):
        whole = feed(**options).parts(step)
        shares = [feed(rank, ranks, **options).parts(step) for rank in range(ranks)]
        for number, part in enumerate(whole):
            of_rank = [share[number] for share in shares]
            assert torch.equal(part.x, torch.cat([p.x for p in of_rank]))
            assert torch.equal(part.y, torch.cat([p.y for p in of_rank]))
            assert sum(p.weight for p in of_rank) == pytest.approx(1)
            assert [p.weight * len(part.y) for p in of_rank] == pytest.approx(
                [len(p.y) for p in of_rank]
            )
            assert {p.own for p in of_rank} == {part.own}
            if part.other is not None:
                assert torch.equal(part.other, torch.cat([p.other for p in of_rank]))


def test_crops_do_not_mirror():
    """Each image of a crop is found in its padded original, which is not so of its mirror image."""
    x = pixels()
    part = feed(augment="crop").parts(0)[0]
    for image, label in zip(part.x, part.y.tolist(), strict=True):
        padded = torch.nn.functional.pad(x[torch.tensor([label])][0], (4,) * 4)
        windows = padded.unfold(1, 9, 1).unfold(2, 9, 1).permute(1, 2, 0, 3, 4).flatten(0, 1)
        assert (windows == image).flatten(1).all(1).any()


def test_mixing_blends_images_that_were_moved():
    plain, moved = feed(mixup=0.4).parts(0)[0], feed(mixup=0.4, augment="crop").parts(0)[0]
    assert plain.x.shape == moved.x.shape
    assert not torch.equal(plain.x, moved.x)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"batch_size": 43}, "got batch size 43, wanted at most 42"),
        ({"augment": "zoom"}, "got augment 'zoom'; wanted one of none, crop, crop-flip"),
    ],
)
def test_what_cannot_be_is_refused(wrong, told):
    with pytest.raises(UsageError, match=told):
        feed(**wrong)


def test_each_process_has_a_chance_of_its_own():
    draws = []
    for rank, step in ((0, 0), (1, 0), (0, 1), (0, 0)):
        feed(rank, 2).seed_process(step)
        draws.append(torch.rand(1).item())
    assert draws[0] == draws[3]
    assert len(set(draws)) == 3


def test_each_epoch_looks_at_an_image_anew():
    whole = feed(augment="crop", batch_size=42)
    first, second = (whole.parts(step)[0] for step in range(2))
    by_label = [part.x[part.y.argsort()] for part in (first, second)]
    assert not torch.equal(*by_label)
