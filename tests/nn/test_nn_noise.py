import pytest
import torch
from torch import nn

from spiritlevel.nn import (
    MomentNoise,
    NoisyBatchNorm1d,
    NoisyBatchNorm2d,
    NoisyBatchNorm3d,
    moment_noise,
)

SHAPES = {
    NoisyBatchNorm1d: (8, 3),
    NoisyBatchNorm2d: (8, 3, 4, 4),
    NoisyBatchNorm3d: (8, 3, 2, 2, 2),
}


def drawn(samples, units):
    """m and s of one call: what it makes of zeros, and what it makes of ones above that."""
    x = torch.stack([torch.zeros(samples, units), torch.ones(samples, units)], dim=-1)
    y = moment_noise(x)
    return y[..., 0], y[..., 1] - y[..., 0]


def test_the_distribution_is_the_papers():
    torch.manual_seed(0)
    m, s = drawn(samples=4000, units=400)
    mu, sigma = (m.amax(0) + m.amin(0)) / 2, s.mean(0)
    # The middle of 4000 uniform draws is off by 1e-4, the mean of as many normal ones by 2e-3.
    assert mu.abs().max() < 0.501
    assert mu.std() == pytest.approx(1 / 12**0.5, rel=0.1)
    assert sigma.min() > 0.99
    assert sigma.max() < 1.26
    assert sigma.mean() == pytest.approx(1.125, abs=0.02)
    assert sigma.std() == pytest.approx(0.25 / 12**0.5, rel=0.1)
    assert (m - mu).abs().max() < 0.101
    assert (m - mu).std() == pytest.approx(0.2 / 12**0.5, rel=0.01)
    assert (s - sigma).std() == pytest.approx(0.1, rel=0.01)


def test_alike_at_all_positions_and_new_at_every_call():
    x = torch.randn(5, 3, 4, 4)
    noise = MomentNoise()
    first, second = noise(x), noise(x)
    assert not torch.equal(first, second)
    slope = (first[..., 1:] - first[..., :1]) / (x[..., 1:] - x[..., :1])
    torch.testing.assert_close(slope, slope[:, :, :1, :1].expand_as(slope), rtol=1e-3, atol=1e-3)


def test_the_gradient_is_the_scale():
    x = torch.randn(5, 3, 2, requires_grad=True)
    y = moment_noise(x)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close((y[..., 1] - y[..., 0]), gradient[..., 0] * (x[..., 1] - x[..., 0]))


@pytest.mark.parametrize(
    ("noisy", "plain"),
    [
        (NoisyBatchNorm1d(3), nn.BatchNorm1d(3)),
        (NoisyBatchNorm2d(3), nn.BatchNorm2d(3)),
        (NoisyBatchNorm3d(3), nn.BatchNorm3d(3)),
    ],
)
def test_noise_comes_after_the_norm_and_only_in_training(noisy, plain):
    x = torch.randn(SHAPES[type(noisy)]) * 3 + 2
    torch.manual_seed(0)
    got = noisy(x)
    torch.manual_seed(0)
    assert torch.equal(got, moment_noise(plain(x)))
    torch.testing.assert_close(noisy.state_dict(), plain.state_dict(), rtol=0, atol=0)
    assert torch.equal(noisy.eval()(x), plain.eval()(x))


def test_without_norm_eval_is_the_identity():
    x = torch.randn(4, 3)
    assert MomentNoise().eval()(x) is x
    assert MomentNoise().state_dict() == {}


def test_torch_fx_sees_one_node_of_each_in_either_mode():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), NoisyBatchNorm2d(4), MomentNoise())
    for training in (True, False):
        traced = torch.fx.symbolic_trace(model.train(training))
        called = [node.target for node in traced.graph.nodes if node.op == "call_module"]
        assert called == ["0", "1", "2"]
