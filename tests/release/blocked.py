"""blocked.py PART MODULE...: spiritlevel where these modules are not installed; prints JSON.

PART is `imports`: what importing each of its modules raised; `works`: what runs all the same; or
`needs`: the error of each feature that needs an extra.
"""

import importlib
import json
import pkgutil
import sys
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

INTEGRATIONS = tuple(f".integrations.{name}" for name in ("ignite", "lightning", "transformers"))


class Without:
    """A finder that finds all that another one does, but these packages."""

    def __init__(self, finder, names):
        self.finder, self.names = finder, set(names)

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in self.names:
            return None
        return self.finder.find_spec(name, path, target)

    def find_distributions(self, context):
        """Of all that is installed, these included: what imports asks for modules."""
        return getattr(self.finder, "find_distributions", lambda _: ())(context)


def every_module():
    """What importing each module of spiritlevel raises; None where it imports.

    But for the integrations, each of which imports its library: see `features`.
    """
    import spiritlevel

    def said(name):
        try:
            importlib.import_module(name)
        except Exception as error:
            return f"{type(error).__name__}: {error}"

    packages = pkgutil.walk_packages(spiritlevel.__path__, "spiritlevel.")
    apart = (".__main__", *INTEGRATIONS)
    return {each.name: said(each.name) for each in packages if not each.name.endswith(apart)}


def verbs():
    """Every public verb that needs no extra, on a small network; what each gave."""
    import torch

    import spiritlevel as sl

    torch.manual_seed(0)
    x, y = torch.randn(16, 1, 8, 8), torch.randint(10, (16,))
    model = sl.create_model("mlp", 10, image_size=8, in_chans=1, depth=2, width=8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with sl.Probe(model, optimizer=optimizer, every=1) as probe:
        for _ in range(3):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
    yield "list_models", len(sl.list_models())
    yield "Probe", len(probe.readings)
    yield "check", len(sl.check(model, [(x, y)], probe=probe).to_json())
    yield "fuse", len(sl.fuse(model).spiritlevel_log)
    yield "recalibrate", len(sl.recalibrate(model, [(x, y)]).spiritlevel_log)
    yield "convert", len(sl.convert(model, "ghost:4").spiritlevel_log)
    model = sl.create_model("small_resnet", 10).eval()
    image = torch.randn(2, 3, 32, 32)
    yield "fold", sl.fold(model, image)(image).numel()
    with TemporaryDirectory() as folder:
        sl.export(model, Path(folder, "net.pt2"), image)
        yield "export", Path(folder, "net.pt2").stat().st_size


def features(folder):
    """What needs an extra: (extra, what a user calls)."""
    import torch

    import spiritlevel as sl
    from spiritlevel.data import load
    from spiritlevel.train.config import Config
    from spiritlevel.train.recipes import published_recipe

    model, image = sl.create_model("small_resnet", 10), torch.randn(2, 3, 32, 32)
    with sl.Probe(model, every=1) as probe:
        model(image).sum().backward()
    quick = {"preset": "smoke", "out": folder / "run"}
    on_dask = {"backend": "dask", "scheduler": "tcp://127.0.0.1:1"}
    yield "study", lambda: sl.study(data="digits", **quick)
    yield "study", lambda: load("mnist5k")
    yield "study", lambda: load(f"folder:{folder / 'images'}")
    yield "study", lambda: probe.report(folder / "probe.html")
    yield "probe", lambda: probe.readings.to_pandas()
    yield "probe", lambda: probe.readings.to_parquet(folder / "readings.parquet")
    yield "hub", lambda: load("hf:nobody/nothing")
    yield "hub", lambda: sl.create_model("ghostnet_100", weights="hf:timm/ghostnet_100.in1k")
    yield "onnx", lambda: sl.export(model, folder / "net.onnx", image)
    yield "onnx", lambda: sl.export(model, folder / "net.onnx", image, to="int8", batches=[image])
    yield "openvino", lambda: sl.export(model, folder / "net.xml", image)
    yield "dask", lambda: sl.study(data="digits", **on_dask, **quick)
    yield (
        "train",
        lambda: Config("small_resnet", "digits", published_recipe("resnet-cifar")).to_toml(),
    )
    yield "cpu", lambda: sl.kernels.use("cpu").__enter__()
    yield "triton", lambda: sl.kernels.use("gpu").__enter__()
    yield "timm", lambda: importlib.import_module("spiritlevel.integrations.timm").register()
    for name in INTEGRATIONS:
        yield name.rpartition(".")[2], partial(importlib.import_module, f"spiritlevel{name}")


def said(call):
    """The error of a user, in full; one that is not ours goes through."""
    from spiritlevel.errors import SpiritlevelError

    try:
        call()
    except SpiritlevelError as error:
        return f"{type(error).__name__}: {error}"
    return None


def main(part, names):
    sys.meta_path[:] = [Without(finder, names) for finder in sys.meta_path]
    if part == "imports":
        return every_module()
    if part == "works":
        return dict(verbs())
    with TemporaryDirectory() as made:
        folder = Path(made)
        for image in ("cats/1", "cats/2", "dogs/1", "dogs/2"):
            path = folder / "images" / f"{image}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"no image")
        return [(extra, said(call)) for extra, call in features(folder)]


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], sys.argv[2:])))
