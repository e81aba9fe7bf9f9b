import torch
from torch import nn
from torch.optim.swa_utils import update_bn

from spiritlevel.nn import FrozenBatchNorm
from spiritlevel.nn.observe import observing, tells


def trained_norm():
    norm = nn.BatchNorm2d(4)
    norm(torch.randn(16, 4, 3, 3) * 2 + 5)
    with torch.no_grad():
        norm.weight.uniform_(0.5, 2)
        norm.bias.normal_()
    return norm


def test_in_training_it_is_the_eval_of_what_it_was_loaded_from():
    norm, x = trained_norm(), torch.randn(6, 4, 3, 3)
    frozen = FrozenBatchNorm(4)
    frozen.load_state_dict(norm.state_dict())
    expected = norm.eval()(x)
    assert torch.equal(frozen.train()(x), expected)
    assert torch.equal(frozen.eval()(x), expected)


def test_nothing_in_it_moves_while_what_comes_before_learns():
    frozen = FrozenBatchNorm(4)
    frozen.load_state_dict(trained_norm().state_dict())
    model = nn.Sequential(nn.Conv2d(3, 4, 1), frozen).train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.randn(8, 3, 5, 5)).square().mean().backward()
        optimizer.step()
    update_bn([torch.randn(8, 3, 5, 5)], model)
    moved = {
        key for key, value in model.state_dict().items() if not torch.equal(value, before[key])
    }
    assert moved == {"0.weight", "0.bias"}
    assert list(frozen.parameters()) == []


def test_any_rank_one_sample_and_fresh():
    for shape in ((1, 4), (2, 4, 3), (1, 4, 1, 1), (2, 4, 1, 2, 3)):
        x = torch.randn(shape)
        torch.testing.assert_close(FrozenBatchNorm(4, eps=0.21)(x), x / 1.1)


def test_a_file_of_before_2018_has_no_count_of_batches_and_is_loaded_too():
    norm, frozen = trained_norm(), FrozenBatchNorm(4)
    old = norm.state_dict()
    del old["num_batches_tracked"], old._metadata
    frozen.load_state_dict(old)
    x = torch.randn(6, 4, 3, 3)
    assert torch.equal(frozen(x), norm.eval()(x))


def test_device_and_dtype():
    frozen = FrozenBatchNorm(4, device="meta", dtype=torch.float64)
    assert {b.device.type for b in frozen.buffers()} == {"meta"}
    assert frozen.running_mean.dtype is frozen.weight.dtype is torch.float64


def test_who_listens_is_told_of_its_passes():
    frozen, x, told = FrozenBatchNorm(4), torch.randn(2, 4, 3, 3), []
    with observing(lambda who, shape, values, found: told.append((who, *values(), found))):
        y = frozen(x)
    assert told == [(frozen, x, y, None)]
    assert tells(frozen)
