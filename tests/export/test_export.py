"""`sl.export`, with real runtimes: what is written is what the model is, or nothing is written."""

from __future__ import annotations

import copy
import subprocess
import sys

import onnx
import onnxruntime
import pytest
import torch
from subjects import Counts, Functional, Several, classifier, labelled, settled, volume, with_norm
from torch import nn

import spiritlevel as sl
from spiritlevel.errors import ExportError, MissingExtra, UsageError
from spiritlevel.export import Normalization, read_metadata

IMAGE = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(3))


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """An .onnx of a small classifier given in train(), with all that may go into it."""
    model = classifier()
    before = copy.deepcopy(model.state_dict())
    path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    report = sl.export(
        model,
        path,
        IMAGE,
        batches=labelled(),
        classes=["ä", "b", "c", "d", "e"],
        normalization={"mean": [0.5] * 3, "std": [0.25] * 3, "size": 8},
        recipe={"epochs": 3},
    )
    return model, before, path, report


def expected(model, x):
    model = copy.deepcopy(model).eval()
    with torch.no_grad():
        return model(x)


def test_the_file_gives_the_models_numbers_for_any_batch(exported):
    model, _, path, _ = exported
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for size in (1, 2, 7, 33):
        x = torch.randn(size, 3, 8, 8)
        (found,) = session.run(None, {"input": x.numpy()})
        torch.testing.assert_close(torch.from_numpy(found), expected(model, x))


def test_the_model_stays_as_it_was(exported):
    model, before, _, _ = exported
    assert model.training
    assert model[1].training
    assert before.keys() == model.state_dict().keys()
    assert all(torch.equal(each, before[name]) for name, each in model.state_dict().items())
    assert all(each.requires_grad for each in model.parameters())


def test_no_batch_norm_is_left_and_its_batch_is_called_so(exported):
    graph = onnx.load(exported[2]).graph
    assert {node.op_type for node in graph.node}.isdisjoint({"BatchNormalization"})
    named = {
        value.name: [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim]
        for value in (*graph.input, *graph.output)
    }
    assert named == {"input": ["batch", 3, 8, 8], "output": ["batch", 5]}
    onnx.checker.check_model(onnx.load(exported[2]), full_check=True)


def test_the_report_says_what_was_compared(exported):
    model, _, path, report = exported
    assert report.ok
    assert [(row.compared, row.batch, row.samples) for row in report.rows] == [
        ("example", 1, 1),
        ("example", 3, 3),
        ("data", 8, 21),
    ]
    assert all(0 <= row.difference <= row.tolerance for row in report.rows)
    assert (report.folded, report.left, report.recalibrated) == (1, (), False)
    right = sum(int((expected(model, x).argmax(1) == y).sum()) for x, y in labelled())
    assert report.samples == 21
    assert report.accuracy_model == report.accuracy_file == right / 21
    assert report.bytes == path.stat().st_size
    assert report.ms_file > 0
    told = str(report)
    for word in ("model.onnx", "ONNX Runtime", "the data", "1 folded, 0 left", "100.00%"):
        assert word in told
    assert report.to_json()["rows"][2]["samples"] == 21


def test_the_file_tells_of_itself(exported):
    told = read_metadata(exported[2])
    assert told.classes == ("ä", "b", "c", "d", "e")
    assert told.normalization == Normalization((0.5,) * 3, (0.25,) * 3, 8)
    assert told.recipe["training"] == {"epochs": 3}
    assert (told.recipe["folded"], told.recipe["recalibrated"]) == (1, False)
    assert told.versions["torch"] == str(torch.__version__)
    assert told.versions["opset"] == onnx.load(exported[2]).opset_import[0].version
    assert {"spiritlevel", "onnxruntime"} <= told.versions.keys()


def test_only_the_file_is_there(exported):
    assert [each.name for each in exported[2].parent.iterdir()] == ["model.onnx"]


def by_name():
    return {"extra": torch.randn(1, 5), "signal": torch.randn(1, 3, 8)}


CASES = {
    "several": lambda: (settled_by_name(), by_name()),
    "functional": lambda: (Functional(), IMAGE),
    "volume": lambda: (settled(volume(), torch.zeros(4, 1, 5, 5, 5)), torch.randn(2, 1, 5, 5, 5)),
    "ghost": lambda: (settled(with_norm("ghost:4"), torch.zeros(8, 3, 8, 8)), IMAGE),
    "renorm": lambda: (settled(with_norm("renorm:warmup=0"), torch.zeros(8, 3, 8, 8)), IMAGE),
    "frozen": lambda: (with_norm("frozen"), IMAGE),
    "features": lambda: (
        settled(nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4)), torch.zeros(8, 6)),
        torch.randn(5, 6),
    ),
    "channels_last": lambda: (
        classifier().to(memory_format=torch.channels_last),
        IMAGE.expand(4, 3, 8, 8).contiguous(memory_format=torch.channels_last),
    ),
    "double": lambda: (classifier().double(), IMAGE.double()),
    "tuple": lambda: (nn.Bilinear(3, 4, 5), (torch.randn(2, 3), torch.randn(2, 4))),
    "compiled": lambda: (torch.compile(classifier(), backend="eager"), IMAGE),
}


def settled_by_name():
    model = Several()
    for _ in range(3):
        model(torch.randn(4, 3, 8) + 1, extra=torch.randn(4, 5))
    return model


@pytest.mark.parametrize("name", CASES)
def test_models_of_many_kinds_become_programs(name, tmp_path):
    model, example = CASES[name]()
    report = sl.export(model, tmp_path / "model.pt2", example)
    assert report.ok
    inside = getattr(model, "_orig_mod", model)
    program = torch.export.load(tmp_path / "model.pt2").module()
    args = (
        example if isinstance(example, tuple) else () if isinstance(example, dict) else (example,)
    )
    kwargs = example if isinstance(example, dict) else {}
    with torch.no_grad():
        found, wanted = program(*args, **kwargs), copy.deepcopy(inside).eval()(*args, **kwargs)
    torch.testing.assert_close(found, wanted)


@pytest.mark.slow
def test_what_onnx_runtime_cannot_do_is_told(tmp_path):
    """It has no convolution in float64, which the exporter does not know."""
    model, example = CASES["double"]()
    with pytest.raises(ExportError, match=r"NotImplemented.*node_conv2d"):
        sl.export(model, tmp_path / "model.onnx", example)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(CASES.keys() - {"double"}))
def test_models_of_many_kinds_become_onnx(name, tmp_path):
    model, example = CASES[name]()
    report = sl.export(model, tmp_path / "model.onnx", example)
    assert report.ok
    graph = onnx.load(tmp_path / "model.onnx").graph
    assert all(value.type.tensor_type.shape.dim[0].dim_param == "batch" for value in graph.input)
    if name == "several":
        assert [value.name for value in graph.input] == ["signal", "extra"]
        assert [value.name for value in graph.output] == ["output_logits", "output_side"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "size"),
    [("ghostnet_050", 64), ("ghostnetv2_100", 96), ("ghostnetv3_050", 64)],
)
@pytest.mark.parametrize("suffix", [".onnx", ".pt2"])
def test_ghostnets(name, size, suffix, tmp_path):
    model = settled(sl.create_model(name, num_classes=7), torch.zeros(4, 3, size, size), steps=2)
    data = [torch.randn(3, 3, size, size) for _ in range(2)]
    report = sl.export(model, tmp_path / f"model{suffix}", data[0][:1], batches=data)
    assert report.ok
    assert report.rows[-1].samples == 6
    assert report.rows[-1].agreement == 1.0


def test_a_program_tells_of_itself_too(tmp_path):
    path = tmp_path / "model.pt2"
    sl.export(classifier(), path, IMAGE, classes=["a", "b", "c", "d", "e"])
    told = read_metadata(path)
    assert told.classes == ("a", "b", "c", "d", "e")
    assert told.versions["torch"] == str(torch.__version__)


def test_recalibrated_it_has_the_statistics_of_the_data(tmp_path):
    model = classifier()
    data = [x for x, _ in labelled(64, 16)]
    report = sl.export(model, tmp_path / "m.pt2", IMAGE, batches=iter(data), recalibrate=True)
    assert report.recalibrated
    assert read_metadata(tmp_path / "m.pt2").recipe["recalibrated"] is True
    exact = copy.deepcopy(model)
    y = exact[0](torch.cat(data))
    exact[1].running_mean = y.mean((0, 2, 3)).detach()
    exact[1].running_var = y.var((0, 2, 3), correction=1).detach()
    found = torch.export.load(tmp_path / "m.pt2").module()(IMAGE)
    torch.testing.assert_close(found, expected(exact, IMAGE), rtol=0, atol=2e-3)
    assert (found - expected(model, IMAGE)).abs().max() > 0.05


def test_a_forward_of_ones_own(tmp_path):
    data = [{"pixels": x, "y": y} for x, y in labelled()]
    report = sl.export(
        classifier(),
        tmp_path / "m.pt2",
        IMAGE,
        batches=data,
        forward=lambda model, batch: model(batch["pixels"]).softmax(1),
    )
    assert report.rows[-1].samples == report.samples == 21


class InPlace(nn.Module):
    def forward(self, x):
        return x.add_(1)


def test_a_model_may_write_to_its_input(tmp_path):
    x = torch.randn(2, 4)
    before = x.clone()
    assert sl.export(InPlace(), tmp_path / "m.pt2", x, batches=[x, x[:1]]).ok
    assert torch.equal(x, before)


class Centred(nn.Module):
    def forward(self, x):
        return x - x.mean(0, keepdim=True)


def test_a_model_whose_samples_depend_on_each_other_is_noted(tmp_path):
    report = sl.export(Centred(), tmp_path / "m.pt2", torch.randn(3, 4))
    assert report.ok
    assert "depend on the others in its batch" in str(report)
    assert sl.export(nn.Linear(4, 3), tmp_path / "n.pt2", torch.randn(3, 4)).notes == ()


def test_what_the_exporter_freezes_is_found_and_nothing_is_left(tmp_path):
    path = tmp_path / "m.pt2"
    with pytest.raises(ExportError) as caught:
        sl.export(Counts(), path, torch.randn(2, 4))
    assert "gives other numbers in torch.export" in str(caught.value)
    assert "nothing was written" in str(caught.value)
    assert not caught.value.report.ok
    assert caught.value.report.notes == ()
    assert caught.value.report.ms_file == 0
    assert "milliseconds" not in str(caught.value.report)
    assert "FAILED" in str(caught.value.report)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_was_there_stays_when_its_successor_fails(tmp_path):
    path = tmp_path / "m.onnx"
    path.write_bytes(b"of yesterday")
    with pytest.raises(ExportError, match="differs by"):
        sl.export(Counts(), path, torch.randn(2, 4))
    assert path.read_bytes() == b"of yesterday"
    assert [each.name for each in tmp_path.iterdir()] == ["m.onnx"]


KILLED = """
import os, signal, sys
sys.path.insert(0, {tests!r})
from subjects import classifier
import spiritlevel as sl, torch

def tell(what, done, total):
    if what == "running the file":
        assert any(each.name.endswith(".tmp") for each in os.scandir({folder!r}))
        os.kill(os.getpid(), signal.SIGKILL)

sl.export(classifier(), {path!r}, torch.randn(1, 3, 8, 8), progress=tell)
"""


@pytest.mark.slow
def test_killed_in_the_middle_the_old_file_is_whole(tmp_path, request):
    path = tmp_path / "m.pt2"
    path.write_bytes(b"of yesterday")
    code = KILLED.format(tests=str(request.path.parent), folder=str(tmp_path), path=str(path))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == -9, done.stderr
    assert path.read_bytes() == b"of yesterday"
    assert len(list(tmp_path.iterdir())) == 2
    assert sl.export(classifier(), path, IMAGE).ok
    assert path.read_bytes() != b"of yesterday"
    assert list(tmp_path.iterdir()) == [path]


FULL = """
import resource, sys
sys.path.insert(0, {tests!r})
from torch import nn
import spiritlevel as sl, torch

resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
given = dict(batches=[torch.randn(4, 300)]) if {to!r} == "int8" else {{}}
try:
    sl.export(nn.Linear(300, 300), {path!r}, torch.randn(1, 300), to={to!r}, **given)
except sl.errors.UsageError as error:
    print(error)
"""


@pytest.mark.slow
@pytest.mark.parametrize("to", ["onnx", "pt2", "openvino", "int8"])
def test_a_full_disk_is_told_and_nothing_is_left(to, tmp_path, request):
    path = tmp_path / f"m{sl.export.FORMATS[to]}"
    path.write_bytes(b"of yesterday")
    code = FULL.format(tests=str(request.path.parent), path=str(path), to=to)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"while writing {path}; wanted a folder that is there and has room" in done.stdout
    assert path.read_bytes() == b"of yesterday"
    assert list(tmp_path.iterdir()) == [path]


class Late(nn.Module):
    """Its batch norm stays in training, whatever eval() says."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))

    def train(self, mode=True):
        super().train(mode)
        self.body[1].training = True
        return self

    def forward(self, x):
        return self.body(x)


def without_statistics():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False))


def always_functional():
    model = Functional()
    vars(model)["training"] = True
    model.train = lambda mode=True: model
    return model


@pytest.mark.parametrize(
    ("model", "example", "told"),
    [
        (without_statistics, IMAGE, "1 (it has no running statistics)"),
        (Late, torch.randn(3, 4), "body.1 (it stays in training)"),
        (always_functional, IMAGE, "the model itself (it stays in training)"),
    ],
)
@pytest.mark.parametrize("suffix", [".pt2", ".onnx"])
def test_batch_norms_in_training_form_are_refused_by_name(model, example, told, suffix, tmp_path):
    with pytest.raises(UsageError, match="normalises by the batch even in eval") as caught:
        sl.export(model(), tmp_path / f"m{suffix}", example)
    assert told in str(caught.value)
    assert list(tmp_path.iterdir()) == []


class Branches(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = Branch()

    def forward(self, x):
        return self.inner(x)


class Branch(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


class Alien(nn.Module):
    def forward(self, x):
        return torch.linalg.svdvals(x)


def test_what_cannot_be_followed_is_named(tmp_path, capfd):
    with pytest.raises(ExportError, match=r"from inner \(Branch\)"):
        sl.export(Branches(), tmp_path / "m.pt2", torch.randn(2, 4))
    with pytest.raises(ExportError, match=r"aten\._linalg_svd"):
        sl.export(Alien(), tmp_path / "m.onnx", torch.randn(2, 4, 4))
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr() == ("", "")


class Clashing(nn.Linear):
    """Its input is called as its weight is."""

    def forward(self, weight):
        return super().forward(weight)


def test_a_file_that_declares_another_shape_than_it_gives_is_refused(tmp_path):
    with pytest.raises(ExportError, match=r"got output of shape \(1, 3\) .* declares \[3, 3\]"):
        sl.export(Clashing(4, 3), tmp_path / "m.onnx", torch.randn(2, 4))
    assert list(tmp_path.iterdir()) == []


class Named(nn.Module):
    def forward(self, x, x_0, output):
        return {"a.b": x[0] + x_0 + output, "a_b": torch.cat([x[1], x[1]])}, x_0 + 1


class Output(nn.Module):
    def forward(self, output):
        return output + 1


def test_names_are_made_distinct(tmp_path):
    x = torch.randn(2, 4)
    sl.export(Named(), tmp_path / "m.onnx", ([x, 2 * x], x + 1, x))
    graph = onnx.load(tmp_path / "m.onnx").graph
    assert [each.name for each in graph.input] == ["x_0", "x_1", "x_0_1", "output"]
    assert [each.name for each in graph.output] == ["output_0_a_b", "output_0_a_b_1", "output_1"]
    shape = graph.output[1].type.tensor_type.shape
    assert [axis.dim_param or axis.dim_value for axis in shape.dim] == ["2*batch", 4]
    sl.export(Output(), tmp_path / "n.onnx", x)
    graph = onnx.load(tmp_path / "n.onnx").graph
    assert [each.name for each in (*graph.input, *graph.output)] == ["output_1", "output"]


def broken(value):
    model = nn.Linear(4, 3)
    nn.init.constant_(model.weight, value)
    return model


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_outputs_that_are_not_finite_are_refused(value, tmp_path):
    with pytest.raises(UsageError, match="outputs are not finite on the example: "):
        sl.export(broken(value), tmp_path / "m.pt2", torch.randn(2, 4).abs())
    assert list(tmp_path.iterdir()) == []


class Sum(nn.Module):
    def forward(self, x, scale):
        masked = torch.where(x > 0, x, -torch.inf)
        return masked, (x * scale).sum()


def test_a_scalar_masks_and_an_input_without_a_batch(tmp_path):
    example = (torch.tensor([[1.0, -1.0, 2.0, 0.5]]), torch.tensor([2.0, 1.0, 1.0, 3.0]))
    report = sl.export(Sum(), tmp_path / "m.pt2", example)
    assert report.ok
    assert [row.batch for row in report.rows] == [1, 3]


def test_a_model_in_two_wrappers_and_names_of_a_generator(tmp_path):
    wrapped = nn.DataParallel(torch.compile(nn.Linear(4, 3), backend="eager"))
    sl.export(wrapped, tmp_path / "m.pt2", torch.randn(2, 4), classes=(c for c in "abc"))
    told = read_metadata(tmp_path / "m.pt2")
    assert (told.recipe["model"], told.classes) == ("Linear", ("a", "b", "c"))


class Tallies(nn.Linear):
    """It counts its calls in eval, too."""

    def __init__(self):
        super().__init__(4, 3)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        return super().forward(x)


def test_buffers_that_change_in_eval_are_noted_and_go_into_the_file_as_they_were(tmp_path):
    report = sl.export(Tallies(), tmp_path / "m.pt2", torch.randn(2, 4))
    (note,) = report.notes
    assert "the model writes to calls;" in note
    assert torch.export.load(tmp_path / "m.pt2").state_dict["calls"] == 0


class OfTwo(nn.Module):
    def forward(self, x):
        return x.view(2, 4) + 1


class UpToThree(nn.Module):
    """Which torch.export takes for any batch but what it was shown."""

    def forward(self, x):
        return x + 1 if len(x) < 4 else x


@pytest.mark.parametrize(
    ("model", "kind", "told"),
    [(OfTwo, UsageError, "a model that takes any batch"), (UpToThree, ExportError, "batch")],
)
def test_a_model_of_some_batches_alone_is_refused(model, kind, told, tmp_path):
    with pytest.raises(kind, match=told):
        sl.export(model(), tmp_path / "m.pt2", torch.randn(2, 4))
    assert list(tmp_path.iterdir()) == []


class Words(nn.Module):
    def forward(self, x):
        return "words"


class Undeep(nn.Linear):
    def __deepcopy__(self, memo):
        raise RuntimeError("not me")


def loose(model, batch):
    return model[0](batch)


class Lost:
    def __iter__(self):
        yield IMAGE
        raise FileNotFoundError("img_0007.png")


BAD = {
    "no module": (lambda: "net", {}, "got str to export"),
    "no suffix": (classifier, {"path": "model"}, "wanted a name that ends in .onnx, .pt2 or .xml"),
    "suffix": (classifier, {"path": "m.pth"}, "wanted a name that ends in .onnx, .pt2 or .xml"),
    "to": (classifier, {"to": "tflite"}, "to='tflite'"),
    "both": (classifier, {"to": "onnx"}, "got m.pt2 for onnx"),
    "folder": (classifier, {"path": "no/m.pt2"}, "wanted a folder that is there"),
    "shape": (
        classifier,
        {"example": torch.zeros(1, 4, 8, 8)},
        "Wanted an example that the model takes",
    ),
    "none": (classifier, {"example": None}, "with input, a NoneType"),
    "empty": (classifier, {"example": ()}, "does not fit Sequential.forward"),
    "unknown": (classifier, {"example": {"y": IMAGE}}, "does not fit Sequential.forward"),
    "scalar": (classifier, {"example": torch.tensor(1.0)}, "wanted a batch of one sample"),
    "no sample": (classifier, {"example": IMAGE[:0]}, "wanted a batch of one sample"),
    "no data": (classifier, {"recalibrate": True}, "got recalibrate=True without data"),
    "no batch": (classifier, {"batches": []}, "got no batches"),
    "one batch": (classifier, {"batches": IMAGE}, "put a single one in a list"),
    "other size": (classifier, {"batches": [IMAGE[..., :7]]}, ""),
    "other type": (Functional, {"batches": [IMAGE, IMAGE[..., :7]]}, "a file has one shape"),
    "loose": (classifier, {"batches": [IMAGE], "forward": loose}, "does not call the model itself"),
    "names": (classifier, {"classes": ["a", "b"]}, "got 2 names of classes for outputs of shape"),
    "name": (classifier, {"classes": "abcde"}, "wanted a name for each"),
    "classes": (classifier, {"classes": 5}, "wanted a name for each"),
    "no names": (classifier, {"classes": []}, "wanted a name for each"),
    "number": (classifier, {"normalization": {"mean": 0.5, "std": 0.25}}, "wanted tuples"),
    "size": (
        classifier,
        {"normalization": {"mean": [0.5], "std": [0.5], "size": "big"}},
        "got a normalization with size 'big'",
    ),
    "lost image": (classifier, {"batches": Lost()}, "got FileNotFoundError: img_0007.png from the"),
    "lost first": (classifier, {"batches": iter(Lost())}, "after 1 of them"),
    "mean": (classifier, {"normalization": {"mean": [1.0], "std": [0.0]}}, "those of std above 0"),
    "key": (classifier, {"normalization": {"men": [1.0]}}, "wanted mean and std"),
    "kind": (classifier, {"normalization": 3}, "wanted a Normalization or a dict"),
    "recipe": (
        classifier,
        {"recipe": {"f": print}},
        "metadata that JSON cannot hold, in its recipe",
    ),
    "lazy": (lambda: nn.Sequential(nn.LazyLinear(3)), {}, "run it once on a batch"),
    "meta": (lambda: nn.Linear(3, 3, device="meta"), {}, "on the device meta"),
    "bfloat16": (lambda: classifier().bfloat16(), {}, "got a model in bfloat16"),
    "words": (Words, {}, "without a tensor"),
    "copy": (lambda: Undeep(3, 3), {}, "wanted a model that copy.deepcopy takes"),
    "precision": (classifier, {"precision": "bfloat16"}, "or bfloat16 and to='openvino'"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_told_in_one_line_and_leaves_nothing(case, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make, options, told = BAD[case]
    given = {"path": "m.pt2", "example": IMAGE, **options}
    with pytest.raises(UsageError) as caught:
        sl.export(make(), **given)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_without_its_package_the_extra_is_named(package, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtra, match=r"spiritlevel\[onnx\]"):
        sl.export(classifier(), tmp_path / "m.onnx", IMAGE)
    assert list(tmp_path.iterdir()) == []
    sl.export(classifier(), tmp_path / "m.pt2", IMAGE)


def _half_written(draft):
    draft.with_suffix(".bin").write_text("new")
    raise RuntimeError


def test_a_file_of_two_goes_and_stays_together(tmp_path):
    from spiritlevel.export.place import drafted

    (tmp_path / "m.bin").write_text("old")
    with pytest.raises(RuntimeError), drafted(tmp_path / "m.xml") as draft:
        _half_written(draft)
    assert (tmp_path / "m.bin").read_text() == "old"
    with drafted(tmp_path / "m.xml") as draft:
        draft.write_text("new")
        draft.with_suffix(".bin").write_text("new")
    assert {each.name: each.read_text() for each in tmp_path.iterdir()} == {
        "m.xml": "new",
        "m.bin": "new",
    }
