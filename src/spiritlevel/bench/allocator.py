"""What it is worth to let glibc keep freed memory: with `tune_allocator` and without, side by side.

The setting cannot be undone, so each measurement is a fresh process; the two settings take turns.
Elsewhere than on Linux with glibc both are the same, and the result says so.
"""

from __future__ import annotations

from typing import Any

from spiritlevel.bench.child import in_a_child
from spiritlevel.bench.norms import parse_shape
from spiritlevel.bench.setting import Progress, Setting, share_of
from spiritlevel.bench.timing import ratio, summaries, summary

__all__ = ["allocator"]

_ROUNDS = 20
"""In each process; its median is one sample."""
_SUBJECTS = ("ours", "eager")


def allocator(
    *,
    shape: str = "32x64x56x56",
    rounds: int = 5,
    threads: int | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """For JSON: the default setting over the tuned one; each round is a pair of processes.

    What is timed is BN + ReLU, forward and backward, contiguous. Raises UsageError.
    """
    parse_shape(shape)
    samples: dict[str, dict[str, list[float]]] = {
        name: {"tuned": [], "default": []} for name in _SUBJECTS
    }
    took_effect = False
    with Setting(rounds=rounds, threads=threads) as setting:
        told = setting.told()
        del told["allocator_tuned"]
        for done in range(rounds):
            turns = ("tuned", "default") if done % 2 else ("default", "tuned")
            for half, turn in enumerate(turns):
                share_of(progress, (done + half / 2) / rounds, 1 / rounds, f"{turn} allocator")
                given = {"shape": shape, "threads": told["threads"], "tuned": turn == "tuned"}
                found = in_a_child(__name__, "medians", given)
                took_effect |= found["took_effect"]
                for name in _SUBJECTS:
                    samples[name][turn].append(found[name])
        return {
            "command": "bench allocator",
            "settings": told | {"shape": shape},
            "environment": setting.environment(),
            "took_effect": took_effect,
            "seconds": {name: summaries(of) for name, of in samples.items()},
            "meaning": "seconds with the default allocator over seconds with the tuned one",
            "ratios": {
                name: ratio(of["default"], of["tuned"]).to_json() for name, of in samples.items()
            },
        }


def medians(shape: str, threads: int, tuned: bool) -> dict[str, Any]:
    """Median seconds of each subject in this process. For a process of its own."""
    import torch

    from spiritlevel.bench.peers import Case, peers
    from spiritlevel.bench.timing import Subject, interleaved
    from spiritlevel.kernels import tune_allocator

    took_effect = tune_allocator() if tuned else False
    torch.set_num_threads(threads)
    there = [p for p in peers(Case(parse_shape(shape)), compiled=False) if p.name in _SUBJECTS]
    subjects = [Subject(peer.name, peer.forward_and_backward) for peer in there]
    samples = interleaved(subjects, _ROUNDS)
    found = {name: summary(one).median for name, one in samples.items()}
    return found | {"took_effect": took_effect}
