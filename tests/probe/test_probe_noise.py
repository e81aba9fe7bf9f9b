import statistics

import numpy as np
import pytest
import torch
from by_hand import double, forward, images, make
from torch import nn

from spiritlevel.errors import UsageError
from spiritlevel.probe import batch_noise


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def noise_by_hand(features_of, images, pool, batch_size, draws, seed):
    """Image by image, draw by draw, feature by feature; mates drawn as the probe draws them."""
    mates = generator(seed)
    variances = []
    for i in range(len(images)):
        drawn = []
        for _ in range(draws):
            rows = torch.randperm(len(pool), generator=mates).tolist()[: batch_size - 1]
            batch = torch.stack([images[i], *(pool[row] for row in rows)])
            drawn.append(features_of(batch)[0].flatten().tolist())
        variances.append([statistics.variance(values) for values in zip(*drawn, strict=True)])
    return statistics.fmean(v for image in variances for v in image)


@pytest.mark.parametrize("batch_size", [2, 5, 12])
@pytest.mark.parametrize("name", ["mlp", "small_vgg"])
def test_it_is_the_variance_over_batch_mates(name, batch_size):
    model, (pool, _) = make(name, "batch"), images(16)
    first = "hidden.0.linear" if name == "mlp" else "stages.0.0.conv"
    options = {"batch_size": batch_size, "draws": 6}
    few = double(3, 1, 4, 4, seed=9)
    got = batch_noise(
        model, few, pool, **options, generator=generator(7), layers=[first, "classifier"]
    )
    with torch.no_grad():
        expected = noise_by_hand(lambda b: forward(model, b)[1], few, pool, **options, seed=7)
    assert list(got) == [first, "classifier", ""]
    assert got[""] == pytest.approx(expected, rel=1e-10)
    assert got["classifier"] == got[""] > 1e-6
    # Before the first norm, batch-mates are not seen.
    assert got[first] == pytest.approx(0, abs=1e-28)


def test_a_layer_is_read_at_its_output():
    model, (pool, _) = make("mlp", "batch"), images(16)
    options = {"batch_size": 4, "draws": 5}
    got = batch_noise(
        model, pool[:2], pool, **options, generator=generator(), layers=["hidden.0.act"]
    )
    with torch.no_grad():
        expected = noise_by_hand(
            lambda b: forward(model, b)[0]["hidden.1.linear"], pool[:2], pool, **options, seed=0
        )
    assert got["hidden.0.act"] == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("norm", ["none", "group:1", "layer", "frozen"])
def test_without_batch_statistics_there_is_none(norm):
    model, (pool, _) = make("small_vgg", norm), images(16)
    noise = batch_noise(model, pool[:2], pool, batch_size=6, draws=4, generator=generator())
    assert noise[""] == pytest.approx(0, abs=1e-28)


def test_it_falls_as_one_over_the_batch():
    """One norm, standard normal features: the variance of (x - m) / s is near (1 + x^2 / 2) / n."""
    pool = double(2000, 20)
    norm = nn.BatchNorm1d(20, affine=False).double()
    sizes = [8, 16, 32, 64]
    noise = [
        batch_noise(norm, pool[:8], pool, batch_size=n, draws=40, generator=generator(n))[""]
        for n in sizes
    ]
    slope, _ = np.polyfit(np.log(sizes), np.log(noise), 1)
    assert slope == pytest.approx(-1, abs=0.1)
    level = (1 + pool[:8].square().mean().item() / 2) / 64
    assert noise[-1] == pytest.approx(level, rel=0.1)


def test_a_ghost_batch_is_as_noisy_as_a_batch_of_its_size():
    pool = double(200, 1, 4, 4)

    def noise(norm, batch_size):
        options = {"batch_size": batch_size, "draws": 50, "generator": generator()}
        return batch_noise(make("mlp", norm), pool[:10], pool, **options)[""]

    ghost = noise("ghost:8", 64)
    assert ghost == pytest.approx(noise("batch", 8), rel=0.3)
    assert noise("batch", 64) < 0.3 * ghost


def test_the_generator_alone_decides():
    model, (pool, _) = make("mlp", "batch"), images(16)

    def noise(seed):
        torch.manual_seed(int(torch.randint(1000, ())))
        return batch_noise(model, pool, pool, batch_size=4, draws=3, generator=generator(seed))

    assert noise(1) == noise(1)
    assert noise(1) != noise(2)


def test_the_whole_pool_leaves_no_choice():
    model, (pool, _) = make("mlp", "batch"), images(5)
    noise = batch_noise(model, pool[:1], pool, batch_size=6, draws=3, generator=generator())
    assert noise[""] == pytest.approx(0, abs=1e-28)


@pytest.mark.parametrize(("batch_size", "draws"), [(1, 4), (0, 4), (7, 4), (4, 1)])
def test_batches_that_cannot_be(batch_size, draws):
    model, (pool, _) = make("mlp", "batch"), images(5)
    with pytest.raises(UsageError) as caught:
        batch_noise(model, pool, pool, batch_size=batch_size, draws=draws, generator=generator())
    assert str(caught.value) == (
        f"got batch_size={batch_size}, draws={draws} and a pool of 5 images; "
        "wanted 2 <= batch_size <= pool + 1 and at least 2 draws"
    )


def test_a_module_named_output():
    net = nn.Sequential()
    net.append(nn.BatchNorm1d(3, affine=False))
    net.add_module("output", nn.Linear(3, 2))
    options = {"batch_size": 4, "draws": 5}
    pool = torch.randn(9, 3)
    plain = batch_noise(net, pool, pool, **options, generator=generator())
    named = batch_noise(net, pool, pool, **options, generator=generator(), layers=["output"])
    assert named == {"output": pytest.approx(plain[""]), "": pytest.approx(plain[""])}
