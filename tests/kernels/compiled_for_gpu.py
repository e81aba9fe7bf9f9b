"""Triton compiles every kernel for a GPU, and calls it, where there is none: but for the call.

Run as a script, with the capability, as 90; prints the kernels, and how many variants of each.
"""

from __future__ import annotations

import sys
from collections import Counter
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver

CALLS: list[tuple[str, int]] = []
WANTED: dict[str, Any] = {}
"""What the next call is to be compiled for: constants by name; tensors of a type and alignment."""
TYPES = {torch.float32: "*fp32", torch.float64: "*fp64", torch.int32: "*i32"}
TYPES |= {torch.float16: "*fp16", torch.bfloat16: "*bf16"}


class Launcher:
    """In the place of the C function that hands a kernel to the device."""

    def __init__(self, src: Any, metadata: Any) -> None:
        self.name, self.names = src.fn.__name__, src.fn.arg_names
        places = dict(enumerate(self.names))
        self.constants = {places[at[0]]: each for at, each in src.constants.items()}
        self.types = dict(src.signature)
        self.whole = {places[at[0]] for at, each in src.attrs.items() if each}

    def __call__(self, _x, _y, _z, _stream, _function, *rest: Any) -> None:
        arguments = rest[-len(self.names) :]
        for name, given in zip(self.names, arguments, strict=True):
            wanted = WANTED.get(name)
            if isinstance(wanted, torch.Tensor):
                assert self.types[name] == TYPES[wanted.dtype], name
                assert (name in self.whole) is (wanted.data_ptr() % 16 == 0), name
                assert wanted.data_ptr() == (
                    given.data_ptr() if isinstance(given, torch.Tensor) else given
                ), name
            elif name in self.constants and name in WANTED:
                assert self.constants[name] == wanted == given, (name, given, wanted)
        CALLS.append((self.name, len(arguments)))


class Utils:
    shared = 1 << 20

    @staticmethod
    def load_binary(*_: Any) -> tuple[Any, ...]:
        return object(), 0, 32, 0, 1024

    @staticmethod
    def unload_module(_: Any) -> None:
        pass

    @classmethod
    def get_device_properties(cls, _: int) -> dict[str, int]:
        return {"max_shared_mem": cls.shared, "multiprocessor_count": 132, "max_num_regs": 65536}


class NoGPU:
    """What Triton asks of a driver."""

    launcher_cls, utils = Launcher, Utils

    def __init__(self, capability: int) -> None:
        self.target = GPUTarget("cuda", capability, 32)

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, _: int) -> int:
        return 0


def ours(capability: int) -> Counter[str]:
    driver.set_active(NoGPU(capability))
    from spiritlevel.kernels import gpu, gpu_ghost, gpu_launch
    from spiritlevel.kernels.ghost_module import Norm

    launch = gpu_launch.launch

    def noted(kernel: Any, x: Any, plan: Any, given: Any, statics: Any = ()) -> None:
        WANTED.clear()
        WANTED.update(zip(kernel.arg_names, given, strict=False))
        WANTED.update(statics)
        launch(kernel, x, plan, given, statics)
        WANTED.clear()

    gpu.launch = gpu_ghost.launch = noted
    gpu.multiprocessors = gpu_launch.multiprocessors = lambda: 132
    assert not gpu_launch.INTERPRETED
    for _ in range(2):  # the second goes to the kernels past Triton's own way
        for shape, dtype, last, act, adds in CASES:
            x = torch.randn(shape).to(dtype)
            x = x.contiguous(memory_format=torch.channels_last) if last else x
            weight, bias = torch.ones(shape[1]), torch.zeros(shape[1])
            running = torch.zeros(shape[1]), torch.zeros(shape[1]), 0.1, 1.0
            residual = torch.ones_like(x) if adds else None
            given = weight, bias, residual
            y, mean, var = gpu.forward(x, *given, act, 0.01, 1e-5, None, running)
            seen = y if adds and act == "relu" else None
            gpu.backward(x, x, *given, seen, mean, var, act, 0.01, 1e-5, True)
            gpu.forward(x, None, None, None, act, 0.01, 1e-5, (mean, var))
            gpu.forward(x, *given, act, 0.01, 1e-5, (mean.float(), var.float()))
            for own in (weight, weight.to(dtype)):
                gpu.forward(x, own, bias, None, act, 0.01, 1e-5, (mean, var))
            gpu.forward(x, None, None, None, "leaky_relu", 0.2, 1e-3, (mean, var))
            shifted = torch.empty(x.numel() + 1, dtype=dtype)[1:].as_strided(x.shape, x.stride())
            gpu.forward(shifted, weight.to(dtype), bias, None, act, 0.01, 1e-5, (mean, var))
            if last:
                gpu.forward(x, *given, act, 0.01, 1e-5, None, groups=2)
                taps = torch.ones(shape[1], 1, 3, 3)
                norm = Norm(weight, bias, 1e-5, running)
                of_module = x, norm, taps, norm, "relu"
                out, found, kept = gpu_ghost.forward(*of_module, None)
                gpu_ghost.backward(out, *of_module, found, kept)
    gpu.built()
    assert not CALLS or CALLS[-1][0] != "merge"
    gpu.merged(torch.zeros(3, 21, dtype=torch.float64))
    assert CALLS[-1][0] == "merge"
    found = Counter(key[0] for key in gpu_launch._COMPILED)
    read_ahead(gpu, gpu_launch)
    gpu_launch.MOST_SHAPES = len(gpu_launch._COMPILED)
    gpu._plan.cache_clear()
    gpu.statistics(x)
    assert len(gpu_launch._COMPILED) == 1, "those of plans that are gone go, too"
    return found


def read_ahead(gpu: Any, gpu_launch: Any) -> None:
    """The way that waits for tiles in shared memory; where there is not enough, the first again."""
    x = torch.randn(64, 64, 28, 28).contiguous(memory_format=torch.channels_last)
    plan, names = gpu._planned(x), [("collect", None), ("reduce", None)]
    (ahead,) = (way for way in plan.summed if way.how["STAGES"] > 1)
    taken = []
    for shared in (1 << 20, 1 << 14):
        Utils.shared = shared
        triton.compiler.compiler.max_shared_mem.cache_clear()
        gpu_launch._COMPILED.clear()
        for kernel in (gpu.gpu_passes.collect, gpu.gpu_passes.reduce):
            kernel.device_caches.clear()
        plan.taken.update(dict.fromkeys(names, ahead))
        _y, mean, var = gpu.forward(x, None, None, None, "relu", 0.0, 1e-5, None)
        gpu.backward(x, x, None, None, None, None, mean, var, "relu", 0.0, 1e-5, True)
        taken.append([plan.taken[name] for name in names])
    assert taken == [[ahead, ahead], [plan.summed[0]] * 2], taken
    Utils.shared = 1 << 20


CASES = (
    ((4, 36, 14, 14), torch.bfloat16, True, "relu", False),
    ((4, 8, 7, 7), torch.float32, True, "hardswish", True),
    ((4, 3, 14, 15), torch.float16, False, "relu", True),
    ((512, 48), torch.float32, False, "gelu", False),
)

if __name__ == "__main__":
    print(dict(ours(int(sys.argv[1]))), len(CALLS), triton.__version__)
