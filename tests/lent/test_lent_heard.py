import pytest
import torch
from torch import nn

from spiritlevel.lent.heard import heard_outputs, removing


def test_hooks_are_removed_also_when_the_block_raises():
    layer = nn.ReLU()
    called = []
    hooks = [
        layer.register_forward_hook(lambda *_: called.append("after")),
        layer.register_forward_pre_hook(lambda *_: called.append("before")),
    ]

    def break_off():
        with removing(hooks):
            layer(torch.zeros(1))
            raise ArithmeticError("in the middle")

    with pytest.raises(ArithmeticError, match="in the middle"):
        break_off()
    layer(torch.zeros(1))
    assert called == ["before", "after"]
    assert not layer._forward_hooks
    assert not layer._forward_pre_hooks


def test_outputs_are_heard_as_copies_in_the_order_they_are_done():
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(inplace=True), nn.Linear(3, 1))
    modules = {"last": model[2], "first": model[0], "both": model}
    with torch.no_grad(), heard_outputs(modules) as found:
        y = model(torch.tensor([[-1.0, 2.0]]))
        model(torch.zeros(1, 2))
    assert list(found) == ["first", "last", "both"]
    assert [len(tensors) for tensors in found.values()] == [2, 2, 2]
    torch.testing.assert_close(found["first"][0], model[0](torch.tensor([[-1.0, 2.0]])))
    assert torch.equal(found["both"][0], y)
    assert not any(module._forward_hooks for module in modules.values())
