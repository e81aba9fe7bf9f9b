"""Where a step's time goes, by kind of operation: torch's profiler, over one step.

Each operation counts with its own time, less that of the operations it calls, so that the kinds add
up to the step. What torch calls from our autograd functions counts as what it is; the rest of such
a function, our kernels, is *ours*. *Python* is what no operation took: modules, hooks, dispatch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from spiritlevel.bench.memory import silent

__all__ = ["KINDS", "kind", "shares"]

_STEP = "spiritlevel: a step"
_PACKAGE = "spiritlevel"
KINDS: Mapping[str, tuple[str, ...]] = {
    "ours": (f"{_PACKAGE}::",),
    "compiled": (
        *("## call compiledfxgraph", "compiled", "torch-compiled", "graph_", "pregraph"),
        *("torchdynamo", "aotdispatcher"),
    ),
    "convolution backward": (
        *("convolution_backward", "convolutionbackward", "mkldnn_convolution_backward"),
        *("_slow_conv2d_backward", "slow_conv2d_backward"),
    ),
    "convolution": ("conv", "_conv", "mkldnn_conv", "thnn_conv", "_slow_conv", "slow_conv"),
    "batch norm": ("batch_norm", "native_batch_norm", "_batch_norm", "nativebatchnorm"),
    "accumulation of gradients": ("torch::autograd::accumulategrad",),
    "optimizer": ("optimizer", "_foreach", "_fused_sgd"),
    "activation": (
        *("relu", "clamp", "threshold", "hardtanh", "hardsigmoid", "hardswish", "sigmoid"),
        *("hardtanhbackward", "leaky_relu", "silu"),
    ),
    "linear": ("linear", "addmm", "mm", "matmul", "t", "transpose"),
    "cat": ("cat", "slice", "narrow", "split"),
    "add": ("add", "sum"),
    "multiplication": ("mul", "div"),
    "pooling": ("mean", "avg_pool", "adaptive", "max_pool", "_adaptive"),
    "loss": ("cross_entropy", "log_softmax", "_log_softmax", "logsoftmax", "nll_loss", "nllloss"),
    "copies": ("copy", "_to_copy", "to", "clone", "contiguous", "fill", "zero", "empty", "resize"),
    "python": (_STEP,),
}
"""Kind -> what the names of its operations begin with; the first that fits is taken."""
_OTHER = "other"
_WHOLE = 2
"""Letters up to which a beginning is a whole name."""


def shares(run: Callable[[], object]) -> dict[str, float]:
    """Kind -> its share of the time of `run`, the largest first; together 1. Have it run before."""
    found = profile(activities=[ProfilerActivity.CPU])
    with silent():
        found.start()
    try:
        with record_function(_STEP):
            result = run()
    finally:
        with silent():
            found.stop()
    del result
    seconds: dict[str, float] = {}
    ours = set(_of_ours())
    for event in found.key_averages():
        name = "ours" if event.key in ours else kind(event.key)
        seconds[name] = seconds.get(name, 0.0) + event.self_cpu_time_total
    whole = sum(seconds.values())
    return {
        name: taken / whole
        for name, taken in sorted(seconds.items(), key=lambda item: -item[1])
        if taken > 0
    }


def kind(operation: str) -> str:
    """Of a name in the profiler's table, such as aten::relu or ReluBackward0."""
    name = operation.removeprefix("autograd::engine::evaluate_function: ").lower()
    name = name.removeprefix("aten::")
    for found, starts in KINDS.items():
        for start in starts:
            whole = len(start) <= _WHOLE
            if name == start or (name.startswith(start) and not whole):
                return found
    return _OTHER


def _of_ours() -> Iterator[str]:
    """What the profiler calls our autograd functions, whichever are loaded."""
    waiting = list(torch.autograd.Function.__subclasses__())
    while waiting:
        each = waiting.pop()
        waiting += each.__subclasses__()
        if each.__module__.split(".")[0] == _PACKAGE:
            yield each.__name__
            yield f"{each.__name__}Backward"
            yield f"autograd::engine::evaluate_function: {each.__name__}Backward"
