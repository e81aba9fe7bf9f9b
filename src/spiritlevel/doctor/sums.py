"""What becomes of a zero, as a norm of scale 0 gives it, on its way to where it is added."""

from __future__ import annotations

from typing import NamedTuple

from torch import fx, nn

from spiritlevel.surgery.tracer import layer

__all__ = ["NOT_OF_ZERO", "WEIGHING", "Zero", "name_of", "operation"]


class Zero(NamedTuple):
    """What becomes of a zero on its way to a sum."""

    shifted: bool = False
    """A number was added: as 1 it scales."""
    stacked: bool = False
    """It is one of several on an axis of their own."""
    dead: bool = False
    """It went through what gives 0 no gradient, as a ReLU."""
    vague: bool = False
    """An operation of which nothing is known was on the way."""

    def through(self, node: fx.Node, several: bool) -> Zero | None:
        """After this operation; None where it may itself be a sum."""
        module = node.meta.get("module")
        name = operation(node)
        if module is not None:
            if isinstance(module, _STOPS):
                return self._replace(dead=True)
            return self if layer(module) else None
        if name in _PLUS:
            return self._replace(shifted=0 not in node.args)
        if name in ("stack", "vstack", "dstack") and several:
            return self._replace(stacked=True)
        if name in _STOPPING:
            return self._replace(dead=True)
        if name in _KEEPS:
            return self
        return None if several or self.stacked else self._replace(vague=True)

    def added(self, node: fx.Node, inputs: int) -> bool:
        """Whether this operation leaves what else it is given as it is."""
        name = operation(node)
        if node.op not in ("call_function", "call_method"):
            return False
        if self.stacked and name in ("sum", "mean"):
            return True
        return inputs > 1 and (name in _SUMS or (self.shifted and name in _TIMES))


_PLUS = frozenset(("add", "iadd", "sub", "isub", "rsub", "subtract", "__add__", "__radd__"))
_SUMS = _PLUS | {"__iadd__", "__sub__", "__rsub__", "lerp", "addcmul", "addcdiv"}
_TIMES = frozenset(("mul", "imul", "multiply", "__mul__", "__rmul__", "__imul__"))
WEIGHING = frozenset(
    (
        *("sigmoid", "hardsigmoid", "softplus", "softmax", "log_softmax", "logsigmoid", "exp"),
        *("conv1d", "conv2d", "conv3d", "linear", "batch_norm", "layer_norm", "group_norm"),
    )
)
"""Weights, and what is not 0 where it is given 0."""
NOT_OF_ZERO = (nn.Sigmoid, nn.Hardsigmoid, nn.Softplus, nn.Softmax, nn.LogSoftmax, nn.LogSigmoid)
_STOPS = (nn.ReLU, nn.ReLU6, nn.Threshold, nn.Hardshrink, nn.Softshrink)
_STOPPING = frozenset(("relu", "relu6", "threshold", "clamp", "clip", "clamp_min"))
"""Give 0 of 0, but no gradient there: the sum is meant, and whether it learns is not known."""
_KEEPS = _TIMES | frozenset(
    (
        *("div", "truediv", "idiv", "neg", "pos", "type", "to", "float", "half", "bfloat16"),
        *("view", "reshape", "flatten", "unflatten", "permute", "transpose", "movedim", "t"),
        *("swapaxes", "squeeze", "unsqueeze", "expand", "expand_as", "repeat", "contiguous"),
        *("clone", "detach", "getitem", "chunk", "split", "unbind", "roll", "flip", "pad", "cat"),
        *("concat", "view_as", "reshape_as", "type_as", "narrow", "select", "getattr"),
        *("mean", "sum", "amax", "amin", "dropout", "dropout1d", "dropout2d", "dropout3d"),
        *("interpolate", "pixel_shuffle", "pixel_unshuffle", "avg_pool1d", "avg_pool2d"),
        *("max_pool1d", "max_pool2d", "adaptive_avg_pool1d", "adaptive_avg_pool2d"),
        *("leaky_relu", "elu", "selu", "celu", "gelu", "silu", "mish", "prelu", "hardswish"),
        *("hardtanh", "tanh", "rrelu", "tuple", "list"),
    )
)
"""Give 0 of 0, with a gradient."""


def operation(node: fx.Node) -> str:
    """Its name, also of one in place."""
    name = name_of(node)
    return name if name.endswith("__") else name.removesuffix("_")


def name_of(node: fx.Node) -> str:
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
