import pytest
import torch
from torch import nn

from spiritlevel.errors import UsageError
from spiritlevel.lent.blame import innermost
from spiritlevel.lent.feeding import run_batch


class Faulty(nn.Module):
    def forward(self, x, *, scale):
        raise ArithmeticError("in the middle")


class Holder(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.ModuleDict({"faulty": Faulty()})

    def forward(self, x):
        return self.inner["faulty"](x[:, :2], scale=torch.ones(4))


def test_the_innermost_module_is_blamed_with_all_that_it_was_given():
    model = Holder()
    with pytest.raises(ArithmeticError) as raised:
        model(torch.zeros(3, 5))
    found = innermost(raised.value)
    assert found is not None
    module, given = found
    assert module is model.inner["faulty"]
    assert [tuple(each.shape) for each in given] == [(3, 2), (4,)]


def test_without_a_module_none_is():
    with pytest.raises(ZeroDivisionError) as raised:
        _ = 1 / 0
    assert innermost(raised.value) is None


def test_it_is_named_by_its_path():
    with pytest.raises(UsageError) as raised:
        run_batch(Holder(), torch.zeros(3, 5))
    assert str(raised.value).startswith(
        "'inner.faulty' (Faulty) raised ArithmeticError, given (3, 2), (4,): in the middle. "
    )
    with pytest.raises(UsageError, match=r"^the forward pass of Holder raised .*\(3, 5\): "):
        run_batch(Holder(), torch.zeros(3, 5), forward=lambda model, batch: 1 / 0)
