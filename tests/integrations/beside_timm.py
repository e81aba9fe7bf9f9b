"""What timm and spiritlevel make of each other, as JSON: run in a process that has both.

timm and torchvision are in a folder of their own, for torchvision beside a torch for CPUs breaks
others that import it; its operators are declared as `spiritlevel.bench.theirs` does it.
"""

from __future__ import annotations

import contextlib
import copy
import io
import json
import re
import sys
import warnings
from collections import Counter
from functools import partial
from pathlib import Path

import torch
from torch import nn

import spiritlevel as sl
from spiritlevel.bench.theirs import timm as found
from spiritlevel.kernels import backend

FOLDER = Path(sys.argv[1])
timm = found()
ROWS = [
    ("efficientnet_b0", {}, {}),
    ("efficientnet_b0", {"act_layer": "hard_swish"}, {"eps": 1e-3, "momentum": 0.01}),
    ("efficientnet_b0", {"act_layer": "gelu"}, {"momentum": None}),
    ("regnety_002", {}, {}),
    ("resnetv2_18", {}, {}),
    ("ese_vovnet19b_slim_dw", {"act_layer": nn.LeakyReLU}, {}),
    ("resnet33ts", {}, {}),
]


def error(make, *args, **options):
    try:
        make(*args, **options)
    except Exception as raised:
        return f"{type(raised).__name__}: {raised}"
    return "none"


def trained(model, x):
    """Logits, gradients, buffers after two steps, and logits in eval mode."""
    outputs = []
    for _ in range(2):
        outputs.append(model.train()(x))
        outputs[-1].pow(2).mean().backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    with torch.no_grad():
        outputs.append(model.eval()(x))
    return [*outputs, *gradients, *model.buffers()]


def farthest(ours, theirs):
    """Of each pair the distance over the length; 0 with rounding, as the gradient of a bias before
    the next norm, is held to the longest.
    """
    lengths = [float(b.detach().double().norm()) for b in theirs]
    least = max(1e-12, 1e-6 * max(lengths))
    pairs = zip(ours, theirs, lengths, strict=True)
    return max(
        float((a - b).detach().double().norm()) / max(length, least) for a, b, length in pairs
    )


def alike(name, options, given):
    """A model of timm with our layer and with timm's own: keys, layers, numbers."""
    models = []
    for norm in (sl.nn.BatchNormAct2d, timm.layers.BatchNormAct2d):
        torch.manual_seed(0)
        norm = partial(norm, **given) if given else norm
        models.append(timm.create_model(name, num_classes=10, norm_layer=norm, **options).double())
    ours, theirs = models
    norms = [m for m in ours.modules() if isinstance(m, nn.BatchNorm2d)]
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(4, 3, 64, 64, dtype=torch.float64)
    return {
        "all ours": {type(m) for m in norms} == {sl.nn.BatchNormAct2d},
        "activations": sorted({str(m.act) for m in norms}),
        "keys": list(ours.state_dict()) == list(theirs.state_dict()),
        "off": farthest(trained(ours, x), trained(theirs, x)),
    }


def norms():
    early = sl.nn.batch.BatchNormAct2d  # of which timm is not told
    found = {"unknown": error(timm.create_model, "regnety_002", norm_layer=early)}
    found["alike"] = [alike(*row) for row in ROWS]
    make = partial(timm.create_model, num_classes=10)
    act = partial(make, norm_layer=sl.nn.BatchNormAct2d)
    found["plain"] = {n: error(act, n) for n in ("resnet18", "xception41", "fasternet_t0")}
    found["mish"] = error(act, "efficientnet_b0", act_layer="mish")
    found["none taken"] = {
        f"{name} {norm.__module__}": error(make, name, norm_layer=norm)
        for name in ("tf_efficientnet_b0", "mobilenetv3_small_100")
        for norm in (sl.nn.BatchNormAct2d, timm.layers.BatchNormAct2d)
    }
    found["scripted"] = error(torch.jit.script, act("efficientnet_b0"))
    found["sync"] = error(timm.layers.convert_sync_batchnorm, act("regnety_002"))
    torch.manual_seed(0)
    resnet = make("resnet18", norm_layer=sl.nn.BatchNorm2d).double()
    torch.manual_seed(0)
    x = torch.randn(4, 3, 64, 64, dtype=torch.float64)
    torch.manual_seed(0)
    theirs = make("resnet18").double()
    theirs.load_state_dict(resnet.state_dict())
    found["resnet"] = farthest(trained(resnet, x), trained(theirs, x))
    whole = make("mobilenetv3_small_050").eval().double()
    with torch.no_grad():
        before = whole(x)
        frozen = sl.convert(sl.fuse(whole), "frozen")
        found["frozen"] = farthest([frozen.train()(x)], [before])
    found["still learn"] = sum(isinstance(m, nn.BatchNorm2d) for m in frozen.modules())
    synced = act("regnety_002").eval().double()
    with torch.no_grad():
        before = synced(x)
        found["synced"] = farthest([sl.convert(synced, "sync")(x)], [before])
    traced = partial(timm.create_model, "efficientnet_b0", features_only=True, feature_cls="fx")
    ours = traced(norm_layer=sl.nn.BatchNormAct2d).double()
    theirs = traced(norm_layer=timm.layers.BatchNormAct2d).double()
    theirs.load_state_dict(ours.state_dict())
    with torch.no_grad():
        found["features"] = [len(ours.eval()(x)), farthest(ours(x), theirs.eval()(x))]
    return found


FUSED = (("mobilenetv3_small_050", True), ("mobilenetv3_small_050", False), ("regnety_002", False))


def fused_with_their_own(name, example):
    """A model of timm with timm's own norms: what `sl.fuse` makes of it, beside what it was."""
    theirs = timm.create_model(name, num_classes=10).double()
    ours, x = copy.deepcopy(theirs), torch.randn(4, 3, 32, 32, dtype=torch.float64)
    log = sl.fuse(ours, x if example else None).spiritlevel_log
    norms = [m for m in ours.modules() if isinstance(m, nn.BatchNorm2d)]
    told = {
        "left": [str(entry) for entry in log if entry.action == "left"],
        "ours": all(type(m).__module__ == "spiritlevel.nn.batch" for m in norms),
        "activations": dict(Counter(str(getattr(m, "act", "none")) for m in norms)),
        "keys": list(ours.state_dict()) == list(theirs.state_dict()),
        "again": sorted({entry.action for entry in sl.fuse(ours).spiritlevel_log[len(log) :]}),
    }
    saved = io.BytesIO()
    torch.save(ours, saved)
    saved.seek(0)
    loaded = torch.load(saved, weights_only=False)
    before = backend.ran.copy()
    with backend.use("cpu"):  # these are too small for it by themselves
        outcome = trained(loaded, x)
    return told | {
        "kernels": sorted(backend.ran - before),
        "off": farthest(outcome, trained(theirs, x)),
    }


class Derived(timm.layers.BatchNormAct2d):
    pass


class Looks(nn.Module):
    """Its numbers depend on the class of its norm."""

    def __init__(self):
        super().__init__()
        self.norm = timm.layers.BatchNormAct2d(3)

    def forward(self, x):
        return self.norm(x) * (2 if type(self.norm) is timm.layers.BatchNormAct2d else 1)


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = timm.layers.BatchNormAct2d(3, apply_act=False)

    def forward(self, x):
        return self.norm(self.norm(x))


def left_alone():
    """Of norms of timm's that fuse must leave, its line; and they work as before."""
    own, found = timm.layers.BatchNormAct2d, {}
    made = {
        "mish": own(3, act_layer="mish"),
        "drop": own(3, drop_layer=nn.Dropout2d),
        "derived": Derived(3),
        "hooked": own(3),
        "hooked within": own(3),
        "more": own(3),
        "frozen": own(3).eval(),
    }
    made["hooked"].register_forward_hook(lambda *_: None)
    made["hooked within"].act.register_forward_hook(lambda *_: None)
    made["more"].add_module("more", nn.Identity())
    for name, norm in made.items():
        kind, held = type(norm), dict(norm._modules)
        model = nn.Sequential(nn.Conv2d(3, 3, 1), norm)
        (entry,) = sl.fuse(model).spiritlevel_log
        found[name] = [str(entry), type(norm) is kind and norm._modules == held]
    shared = own(3)
    (entry,) = sl.fuse(nn.Sequential(shared, nn.Conv2d(3, 3, 1), shared)).spiritlevel_log
    found["shared"] = [str(entry), type(shared) is own]
    found["twice"] = [str(entry) for entry in sl.fuse(Twice()).spiritlevel_log]
    last = nn.Sequential(nn.Conv2d(3, 3, 1), own(3, apply_act=False))
    found["alone"] = [str(entry) for entry in sl.fuse(last).spiritlevel_log]
    looks = Looks()
    held = list(looks.norm._modules)
    refused = error(sl.fuse, looks, torch.randn(4, 3, 5, 5))
    same = type(looks.norm) is own and list(looks.norm._modules) == held
    found["looks"] = [refused, same and "act" not in vars(looks.norm)]
    return found


def registered():
    from spiritlevel.integrations.timm import register

    warnings.simplefilter("error")
    names = register()
    entries = [timm.model_entrypoint(name) for name in names]
    again = register()
    same = [timm.model_entrypoint(name) for name in again] == entries
    return {
        "names": names,
        "again": same,
        "listed": timm.list_models("spiritlevel_*"),
        "pretrained": timm.list_pretrained("spiritlevel_*"),
        "theirs": timm.model_entrypoint("ghostnet_100").__module__,
    }


def made():
    """One of ours by timm's ways, beside ours and timm's own of the same weights."""
    make = partial(timm.create_model, "spiritlevel_ghostnet_050", drop_rate=0.0)
    torch.manual_seed(0)
    model = make(num_classes=10, in_chans=1)
    own = sl.create_model("ghostnet_050", 10, in_chans=1, drop_rate=0.0)
    own.load_state_dict(model.state_dict())
    theirs = timm.create_model("ghostnet_050", num_classes=10, in_chans=1, drop_rate=0.0)
    theirs.load_state_dict(model.state_dict())
    x = torch.randn(4, 1, 64, 64, dtype=torch.float64)
    three = [trained(net.double(), x) for net in (model, own, theirs)]
    found = {
        "ours": farthest(three[0], three[1]),
        "theirs": farthest(three[0], three[2]),
        "data": timm.data.resolve_model_data_config(model),
        "cfg": [model.default_cfg["architecture"], model.pretrained_cfg["classifier"]],
        "traits": [model.num_classes, model.num_features, model.head_hidden_size, model.in_chans],
    }
    with torch.no_grad():
        last = model.forward_features(x)
        found["parts"] = farthest([model.forward_head(last)], [model(x)])
        found["pre_logits"] = farthest(
            [model.get_classifier()(model.forward_head(last, pre_logits=True))], [model(x)]
        )
        few = model.forward_intermediates(x, indices=(0, -4), intermediates_only=True)
        found["few"] = farthest(few, model.intermediates(x)[:2])
        stages = []
        for stage in model.blocks:
            stage.register_forward_hook(lambda *_: stages.append(1))
        model.forward_intermediates(x, indices=(0, -4), intermediates_only=True)
        found["stages"] = len(stages)
        last, taken = model.forward_intermediates(x, indices=2)
        found["taken"] = farthest([last, *taken], [taken[-1], *model.intermediates(x)[-2:]])
    found["indices"] = error(model.forward_intermediates, x, indices=[5])
    found["format"] = error(model.forward_intermediates, x, output_fmt="NHWC")
    copied = copy.deepcopy(model)
    copied.reset_classifier(3)
    copied.set_grad_checkpointing()
    found["reset"] = [list(copied.train()(x).shape), copied.num_classes, copied.checkpointing]
    found["features"] = list(make(num_classes=0)(torch.randn(2, 3, 64, 64)).shape)
    for name, options in (
        ("untrained", {"pretrained": True}),
        ("pool", {"global_pool": "max"}),
        ("path", {"drop_path_rate": 0.1}),
    ):
        found[name] = error(make, **options)
    return found


def weights():
    """timm's, by a checkpoint, by pretrained_cfg_overlay and by our `weights`."""
    torch.manual_seed(1)
    theirs = timm.create_model("ghostnet_050", num_classes=1000).eval()
    file = str(FOLDER / "theirs.pth")
    torch.save(theirs.state_dict(), file)
    make = partial(timm.create_model, "spiritlevel_ghostnet_050")
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        wanted = theirs(x)
        loaded = {
            "checkpoint": make(checkpoint_path=file),
            "overlay": make(pretrained=True, pretrained_cfg_overlay={"file": file}),
            "weights": make(weights=file),
        }
        found = {name: farthest([net.eval()(x)], [wanted]) for name, net in loaded.items()}
        tuned = make(
            pretrained=True, pretrained_cfg_overlay={"file": file}, num_classes=3, in_chans=1
        )
        found["tuned"] = list(tuned(x[:, :1]).shape)
        grey = tuned.conv_stem.weight, theirs.conv_stem.weight.sum(1, keepdim=True)
        found["stem"] = farthest(grey[:1], grey[1:])
    return found


def maps():
    """Of every GhostNet what `features_only` says of its maps, and what they are."""
    found = {}
    for name in timm.list_models("spiritlevel_*"):
        net = timm.create_model(name, features_only=True, out_indices=(0, 1, 2, 3, 4)).eval()
        info = net.feature_info
        with torch.no_grad():
            shapes = [list(f.shape) for f in net(torch.randn(1, 3, 64, 64))]
        found[name] = [
            [1, chs, 64 // times, 64 // times]
            for chs, times in zip(info.channels(), info.reduction(), strict=True)
        ] == shapes and info.module_name()
    return found


def page():
    """What the code of docs/timm.md prints, block after block."""
    root, given = Path(__file__).parents[2], {}
    text = (root / "docs/timm.md").read_text(encoding="utf-8")
    text = text.replace("PATH/OF/A/CLONE", str(root))
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        for code in re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL):
            exec(compile(code, "docs/timm.md", "exec"), given)
    given["model"](given["torch"].randn(2, 3, 64, 64))
    return printed.getvalue().splitlines()


print(
    json.dumps(
        {
            "norms": norms(),
            "fused": {
                f"{name} {example}": fused_with_their_own(name, example) for name, example in FUSED
            },
            "left": left_alone(),
            "registered": registered(),
            "made": made(),
            "weights": weights(),
            "maps": maps(),
            "page": page(),
        }
    )
)
