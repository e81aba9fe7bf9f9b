"""SL105 to SL107, SL109: what stands before a norm, and what becomes of its output."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn
from torch.nn.parameter import is_lazy

from spiritlevel.doctor.case import Case
from spiritlevel.doctor.finding import Finding
from spiritlevel.doctor.rule import Rule, rule
from spiritlevel.doctor.running import held, listed, spared
from spiritlevel.doctor.structure import WEIGHTS, Step

__all__: list[str] = []

_MOVES = frozenset({"transpose", "permute", "movedim", "swapaxes", "contiguous", "Identity"})
"""Change where a channel stands, not what is in it."""


@rule(
    "SL105",
    "dropout-before-norm",
    "info",
    threads=("luigibonati/mlcolvar#205", "https://arxiv.org/abs/1801.05134"),
)
def dropout_before_norm(rule: Rule, case: Case) -> Iterator[Finding]:
    """Dropout comes before a batch norm, so eval() feeds it less variance than its statistics have.

    Dropout of share p keeps the mean of what it scales and multiplies its second moment by
    1 / (1 - p) in training only; the running variance is that of training (Li et al. 2018,
    "variance shift"). Layers between soften it. How much it is, data shows: SL312. Told where the
    path from the dropout to the norm has no other norm and no sum on it.
    """
    found: dict[str, tuple[str, str]] = {}
    for path, norm in case.batch_norms.items():
        if norm._buffers.get("running_var") is None:
            continue
        for chain in case.structure.before(norm):
            dropout = next((step for step in _until_norm(chain, case) if _drops(step)), None)
            if dropout is not None:
                found[path] = (dropout.path or f"a call of {dropout.name}", _share(dropout))
    if found:
        path, more = listed(list(found))
        where, share = found[path]
        yield rule.found(
            path,
            f"comes after dropout ({where}{share}){more}: its running variance is that with "
            "dropout on, and eval() feeds it less",
            fix="put the dropout after the last batch norm, or recalibrate with dropout off",
            dropout=where,
            norms=len(found),
            layers=list(found),
        )


@rule(
    "SL106",
    "bias-before-norm",
    "info",
    threads=(
        "matterport/Mask_RCNN#1455",
        "milesial/Pytorch-UNet#325",
        "4uiiurz1/pytorch-nested-unet#39",
        "huggingface/pytorch-image-models#357",
    ),
)
def bias_before_norm(rule: Rule, case: Case) -> Iterator[Finding]:
    """A convolution or Linear layer has a bias that the norm after it takes away again.

    The norm subtracts the channel's mean, the bias included, and its own bias takes the place. The
    parameter costs memory and time and gets a gradient of rounding only. Told of batch and instance
    norms that read all of the layer's output, and not of frozen ones, which subtract a constant.
    """
    layers: list[str] = []
    for path, module in case.model.named_modules():
        bias = getattr(module, "bias", None)
        if not isinstance(module, WEIGHTS) or bias is None or is_lazy(bias):
            continue
        readers = list(_through_moves(case, case.structure.readers(module)))
        # Whether it is sure is asked last: source code may have to be read for it.
        if readers and all(_centres(case, r) for r in readers) and case.structure.sure(module):
            layers.append(path)
    if layers:
        modules = dict(case.model.named_modules())
        wasted = sum(modules[path].bias.numel() for path in layers)
        path, more = listed(layers)
        yield rule.found(
            path,
            f"has a bias that the norm after it subtracts{more}: {wasted:,} parameters that do "
            "nothing",
            fix="build it with bias=False; to drop one from trained weights, take it off the "
            "norm's running_mean",
            parameters=wasted,
            layers=layers,
        )


@rule(
    "SL107",
    "norm-over-time-axis",
    "warning",
    threads=(
        "ruotianluo/self-critical.pytorch#44",
        "ruotianluo/self-critical.pytorch#65",
        "pytorch/pytorch#7577",
        "pytorch/pytorch#71366",
        "https://discuss.pytorch.org/t/91364",
    ),
)
def norm_over_time_axis(rule: Rule, case: Case) -> Iterator[Finding]:
    """A BatchNorm1d after a Linear layer has another number of channels than that has features.

    This runs only on inputs (N, L, features) with L = num_features: torch takes axis 1 for the
    channels, so each time step is normalised over all features, and no feature on its own. A
    warning where an embedding, a recurrent layer or an attention, whose last axis is features, has
    fed the Linear layer with nothing but Linear layers, activations and LayerNorm between. Info
    otherwise: the layer may mix the steps of (N, channels, L), and the norm is right. SL309 sees
    the same on data, also where the two numbers happen to agree.
    """
    for path, norm in case.batch_norms.items():
        if not isinstance(norm, nn.BatchNorm1d) or not norm.num_features:
            continue
        for chain in case.structure.before(norm):
            step = next((each for each in chain if not _elementwise(each)), None)
            linear = None if step is None else step.module
            if step is None or not isinstance(linear, nn.Linear):
                continue
            if linear.out_features == norm.num_features:
                continue
            features = linear.out_features
            source = _features_from(chain[chain.index(step) + 1 :])
            sure = source is not None and case.structure.sure(linear)
            yield rule.found(
                path,
                f"BatchNorm1d({norm.num_features}) reads {step.path}, whose last axis is the "
                f"{features} it gives, so it takes axis 1, of length {norm.num_features}, for the "
                "channels; "
                + (f"the features of {source} are on the last axis; " if source else "")
                + f"wanted num_features={features}"
                + ("" if sure else f", unless {step.path} mixes steps of (N, channels, steps)"),
                fix=f"BatchNorm1d({features}), called as norm(x.transpose(1, 2)).transpose(1, 2)"
                + ("" if sure else "; nothing, if axis 1 holds the channels"),
                severity="warning" if sure else "info",
                num_features=norm.num_features,
                features=features,
                linear=step.path,
            )
            break


@rule(
    "SL109",
    "dead-scale",
    "warning",
    threads=(
        "tensorpack/tensorpack#420",
        "google-deepmind/sonnet#185",
        "facebookresearch/simsiam#28",
        "huggingface/pytorch-image-models#1063",
    ),
)
def dead_scale(rule: Rule, case: Case) -> Iterator[Finding]:
    """All scales (gamma) of a norm are 0, so it gives a constant whatever it is fed.

    At the end of a residual branch that is meant: the block starts as the identity. Elsewhere it
    cuts the network: nothing before the layer reaches the output or gets a gradient. Silent where
    the output is added to something before an activation or a weight, and where some scales are not
    0 (pruned channels). Info where the graph does not show what follows, and on a class of another
    library, whose scale may be 1 + weight.
    """
    for path, norm in case.norms.items():
        weight = held(norm, "weight")
        if weight is None or bool((weight != 0).any()):
            continue
        added = case.structure.ends_in_sum(norm)
        if added:
            continue
        sure = added is False and case.structure.sure(norm) and _torchs(norm)
        yield rule.found(
            path,
            f"all {weight.numel()} scales are 0: the output is its bias, whatever it is fed"
            + ("" if sure else ", unless it is added to something or its scale is 1 + weight"),
            fix="nn.init.ones_(norm.weight); 0 is for the last norm of a residual branch only",
            severity="warning" if sure else "info",
            channels=weight.numel(),
            largest=0.0,
            threshold=0.0,
        )


# ---- steps ---------------------------------------------------------------------------------------


def _until_norm(chain: list[Step], case: Case) -> Iterator[Step]:
    norms = set(case.norms.values())
    for step in chain:
        if step.module in norms:
            return
        yield step


def _drops(step: Step) -> bool:
    if step.module is not None:
        return "Dropout" in step.name and getattr(step.module, "p", 1) not in (0, 0.0)
    return "dropout" in step.name and _given(step) not in (0, 0.0)


def _given(step: Step) -> Any:
    """The share that a dropout function is given, if it is a number."""
    arguments = step.node.args
    share = step.node.kwargs.get("p", arguments[1] if len(arguments) > 1 else None)
    return share if isinstance(share, int | float) else None


def _share(step: Step) -> str:
    share = _given(step) if step.module is None else getattr(step.module, "p", None)
    return f", p={share:g}" if isinstance(share, int | float) else ""


def _features_from(chain: list[Step]) -> str | None:
    """What is known to give features on the last axis, with no other axis taken since."""
    for step in chain:
        if isinstance(step.module, _FEATURES):
            return step.path if getattr(step.module, "batch_first", True) else None
        # A recurrent layer or an attention gives a tuple, of which the first is taken.
        first = step.module is None and step.name == "getitem" and step.node.args[1] == 0
        if not first and not _elementwise(step) and not isinstance(step.module, _PER_STEP):
            return None
    return None


_FEATURES = (nn.Embedding, nn.RNNBase, nn.MultiheadAttention, nn.TransformerEncoderLayer)
_PER_STEP = (nn.Linear, nn.LayerNorm)


def _elementwise(step: Step) -> bool:
    if step.module is None:
        return step.name.rstrip("_") in _KEEPS_SHAPE
    home = type(step.module).__module__
    return home in ("torch.nn.modules.activation", "torch.nn.modules.dropout")


_KEEPS_SHAPE = frozenset(
    (
        "relu",
        "leaky_relu",
        "elu",
        "gelu",
        "silu",
        "mish",
        "sigmoid",
        "tanh",
        "dropout",
        "contiguous",
    )
)


def _through_moves(case: Case, readers: list[Step]) -> Iterator[Step]:
    for step in readers:
        if step.name in _MOVES:
            yield from _through_moves(case, case.structure.after(step))
        else:
            yield step


def _centres(case: Case, step: Step) -> bool:
    """Whether it subtracts each channel's mean over what it is fed, in training."""
    norm = step.module
    if isinstance(norm, nn.modules.instancenorm._InstanceNorm):
        return True
    if norm is None or norm not in case.batch_norms.values():
        return False
    return norm.training or not (case.model.training or spared(norm))


def _torchs(norm: nn.Module) -> bool:
    home = getattr(type(norm).forward, "__module__", "")
    return home.startswith(("torch.nn.", "spiritlevel.nn."))
