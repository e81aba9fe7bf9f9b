"""Int8 by calibration data: what is lost, and what equalised ranges bring back."""

import copy

import onnxruntime
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from spiritlevel.data import load, prepare
from spiritlevel.errors import ExportError, UsageError
from spiritlevel.export import int8, read_metadata
from spiritlevel.export.compare import MOST_LOST
from spiritlevel.export.example import read_example
from spiritlevel.export.metadata import Metadata
from spiritlevel.train import score

META = Metadata(classes=tuple("0123456789"), recipe={"folded": 0})
BATCH = 64


class Net(nn.Module):
    """Convolution, depthwise convolution, convolution, linear."""

    def __init__(self):
        super().__init__()
        self.first, self.dw = nn.Conv2d(1, 16, 3, padding=1), nn.Conv2d(16, 16, 3, 2, 1, groups=16)
        self.last, self.head = nn.Conv2d(16, 32, 3, 2, 1), nn.Linear(512, 10)

    def forward(self, x):
        return self.head(self.features(x))

    def features(self, x):
        y = self.dw(self.first(x).relu()).relu()
        return self.last(y).relu().flatten(1)


def spread_(net):
    """The same function, with the channels of two layers up to 1000 times apart in range."""
    generator = torch.Generator().manual_seed(1)
    one, two = (10 ** (3 * torch.rand(16, generator=generator)) for _ in range(2))
    column = (-1, 1, 1, 1)
    with torch.no_grad():
        net.first.weight /= one.view(column)
        net.first.bias /= one
        net.dw.weight *= (one / two).view(column)
        net.dw.bias /= two
        net.last.weight *= two.view(1, -1, 1, 1)
    return net


@pytest.fixture(scope="module")
def digits():
    return prepare(load("digits", image_size=16))


@pytest.fixture(scope="module")
def net(digits):
    """Convolutions as they are drawn, and a linear layer by ridge regression: no training."""
    torch.manual_seed(0)
    net = Net().eval()
    wanted = F.one_hot(digits.train_y, 10).float()
    with torch.no_grad():
        x = net.features(digits.train_x[:])
        x = torch.cat([x, torch.ones(len(x), 1)], 1)
        inverse = torch.linalg.inv(x.T @ x + 1e-2 * torch.eye(513))
        solved = (inverse @ x.T @ wanted).T
        net.head.weight.copy_(solved[:, :-1])
        net.head.bias.copy_(solved[:, -1])
    return net


@pytest.fixture(scope="module")
def calibration(digits):
    x, y = digits.train_x[:512], digits.train_y[:512]
    return [[part] for part in x.split(BATCH)], list(y.split(BATCH))


def right(runtime, digits):
    found = runtime.run([digits.test_x[:]])[0].argmax(1)
    return float((found == digits.test_y).float().mean())


@pytest.fixture(scope="module")
def plain(net, digits, calibration, tmp_path_factory):
    path = tmp_path_factory.mktemp("int8") / "net.onnx"
    inputs, targets = calibration
    seen = []
    given = read_example(net, digits.test_x[:2])
    runtime = int8.write(
        net,
        path,
        given,
        META,
        calibration=inputs,
        targets=targets,
        on_batch=lambda *told: seen.append(told),
    )
    assert seen == [("calibrating plain int8", done, 8) for done in range(1, 9)]
    return path, runtime


def test_plain_int8_of_a_sound_network(net, digits, plain):
    path, runtime = plain
    assert [each.name for each in path.parent.iterdir()] == ["net.onnx"]
    assert (runtime.precision, runtime.equalised) == ("int8", ())
    float32, quantized = runtime.trials
    assert (float32.form, quantized.form) == ("float32", "plain int8")
    assert float32.accuracy - quantized.accuracy <= MOST_LOST
    assert 0 < quantized.error < 0.1
    accuracy = score(net, digits.test_x, digits.test_y).accuracy
    assert accuracy > 0.9
    assert right(runtime, digits) >= accuracy - 0.02
    assert runtime.notes[1] == "kept: plain int8"


def test_the_file_in_a_fresh_session(net, digits, plain):
    session = onnxruntime.InferenceSession(str(plain[0]), providers=["CPUExecutionProvider"])
    (name,) = (each.name for each in session.get_inputs())
    for batch in (1, 5):
        x = digits.test_x[:batch]
        (found,) = session.run(None, {name: x.numpy()})
        with torch.no_grad():
            expected = net(x)
        assert found.shape == (batch, 10)
        assert (torch.from_numpy(found) - expected).norm() < 0.1 * expected.norm()


def test_weights_are_int8_of_7_bits(plain):
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(plain[0]).graph
    kinds = {}
    for each in graph.initializer:
        kinds.setdefault(each.data_type, []).append(numpy_helper.to_array(each))
    weights = [each for each in kinds[onnx.TensorProto.INT8] if each.ndim == 4]
    assert [each.shape for each in weights] == [(16, 1, 3, 3), (16, 1, 3, 3), (32, 16, 3, 3)]
    assert all(abs(each.astype(int)).max() in (63, 64) for each in weights)


def test_metadata(plain):
    found = read_metadata(plain[0])
    assert found.classes == META.classes
    assert found.recipe["folded"] == 0
    assert found.recipe["quantization"]["samples"] == 512
    assert found.recipe["quantization"]["equalised"] == []
    assert found.versions["onnxruntime"] == onnxruntime.__version__


def test_ranges_far_apart_are_equalised(net, digits, calibration, tmp_path):
    """The same function in float32, and of no use in plain int8."""
    bad = spread_(copy.deepcopy(net))
    x = digits.test_x[:]
    with torch.no_grad():
        assert (bad(x) - net(x)).abs().max() < 1e-4 * net(x).abs().max()
    inputs, targets = calibration
    given = read_example(bad, digits.test_x[:2])
    runtime = int8.write(bad, tmp_path / "a.onnx", given, META, calibration=inputs, targets=targets)
    float32, quantized, equalised = runtime.trials
    assert equalised.form == "equalised int8"
    assert float32.accuracy - quantized.accuracy > 5 * MOST_LOST
    assert float32.accuracy - equalised.accuracy <= MOST_LOST
    assert runtime.equalised == ("first", "dw")
    assert right(runtime, digits) >= score(net, digits.test_x, digits.test_y).accuracy - 0.02
    assert "kept: equalised int8, 2 convolutions equalised" in runtime.notes
    assert read_metadata(tmp_path / "a.onnx").recipe["quantization"]["equalised"] == ["first", "dw"]


@pytest.mark.slow
def test_without_targets_the_top_1_of_float32_decides(net, digits, calibration, tmp_path):
    bad = spread_(copy.deepcopy(net))
    given = read_example(bad, digits.test_x[:2])
    runtime = int8.write(bad, tmp_path / "net.onnx", given, META, calibration=calibration[0])
    _, quantized, equalised = runtime.trials
    assert quantized.accuracy is None
    assert quantized.agreement < 1 - 5 * MOST_LOST < equalised.agreement
    assert runtime.equalised == ("first", "dw")


def nan(inputs):
    inputs[1][0][3, 0, 2, 2] = torch.nan
    return inputs


def test_lost_is_against_float32(net, digits, calibration, tmp_path):
    """Targets that the network gets wrong, half of them, cost int8 nothing."""
    inputs, targets = calibration
    targets = [torch.where(torch.arange(len(y)) % 2 == 0, (y + 1) % 10, y) for y in targets]
    given = read_example(net, digits.test_x[:2])
    path = tmp_path / "net.onnx"
    runtime = int8.write(net, path, given, META, calibration=inputs, targets=targets)
    float32, quantized = runtime.trials
    assert 0.4 < float32.accuracy < 0.6
    assert abs(float32.accuracy - quantized.accuracy) <= MOST_LOST


class Spoilt(nn.Module):
    """Channels far apart, and a sum that holds them so: nothing can be equalised."""

    def __init__(self, head):
        super().__init__()
        self.one, self.two = nn.Conv2d(1, 16, 3, padding=1), nn.Conv2d(16, 8, 3, 4, 1)
        self.head = head
        torch.manual_seed(0)
        with torch.no_grad():
            self.one.weight[0] *= 1e6
            self.two.weight[:, 0] *= 1e-6

    def forward(self, x):
        y = F.relu(self.one(x)) + 1.0
        return self.head(self.two(y).flatten(1))


SPOILT = {
    "accuracy": (nn.Identity(), True, r"int8 loses \d+\.\d% of the samples .* accuracy"),
    "top-1": (nn.Identity(), False, r"int8 loses \d+\.\d% of the samples .* top-1 of float32"),
    "outputs": (
        nn.Unflatten(1, (8, 4, 4)),
        True,
        r"int8 loses \d+\.\d% of the outputs on the calibration data, of 10% allowed: float32: "
        r"the reference; plain int8: outputs \d+\.\d% off\. Nothing was written",
    ),
}


@pytest.mark.parametrize("judged", SPOILT)
def test_a_file_that_lost_too_much_is_not_kept(digits, calibration, tmp_path, judged):
    head, with_targets, why = SPOILT[judged]
    net = Spoilt(head).eval()
    x = digits.train_x[:128]
    with torch.no_grad():
        right = net(x).flatten(1).argmax(1).split(64)
    path = tmp_path / "net.onnx"
    path.write_text("old")
    with pytest.raises(ExportError, match=why):
        int8.write(
            net,
            path,
            read_example(net, x[:2]),
            META,
            calibration=[[part] for part in x.split(64)],
            targets=right if with_targets else (),
        )
    assert [each.read_text() for each in tmp_path.iterdir()] == ["old"]


def test_targets_that_are_no_classes_do_not_count(net, digits, calibration, tmp_path):
    x, y = calibration[0][0][0][:16], calibration[1][0][:16]
    wrong = [y.float(), F.one_hot(y, 10), y[:, None], y[:-1], None]
    given = read_example(net, digits.test_x[:2])
    path = tmp_path / "net.onnx"
    runtime = int8.write(net, path, given, META, calibration=[[x]] * 5, targets=wrong)
    assert [each.accuracy for each in runtime.trials] == [None, None]


def test_targets_of_more_batches_and_calibration_to_be_read_once(net, calibration, tmp_path):
    given = read_example(net, torch.zeros(2, 1, 16, 16))
    inputs, targets = calibration
    path = tmp_path / "net.onnx"
    with pytest.raises(UsageError, match="got targets for 8 batches of 1"):
        int8.write(net, path, given, META, calibration=inputs[:1], targets=targets)
    with pytest.raises(UsageError, match=r"got a generator as calibration data, .* a list"):
        int8.write(net, path, given, META, calibration=(each for each in inputs))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_weights_that_are_not_finite_are_named(net, calibration, tmp_path, value):
    broken = copy.deepcopy(net)
    with torch.no_grad():
        broken.dw.weight[2] = value
    given = read_example(net, torch.zeros(2, 1, 16, 16))
    with pytest.raises(UsageError, match=r"got NaN or infinite values in dw\.weight, "):
        int8.write(broken, tmp_path / "a.onnx", given, META, calibration=calibration[0])


def test_a_first_axis_that_is_no_batch_is_held_to_the_example(calibration, tmp_path):
    class Scaled(nn.Module):
        def forward(self, x, scale):
            return x * scale

    given = read_example(Scaled(), (torch.ones(2, 4), torch.ones(4)))
    batches = [[torch.ones(3, 4), torch.ones(1)]]
    with pytest.raises(UsageError, match=r"got scale of shape \(1,\), .* wanted that of"):
        int8.write(Scaled(), tmp_path / "a.onnx", given, META, calibration=batches)


BAD = {
    "no samples": (lambda inputs: [[inputs[0][0][:0]]], "got no calibration data for int8"),
    "none": (lambda inputs: [], "got no calibration data for int8"),
    "NaN": (nan, r"got x with NaN or infinite values in batch 1 of the calibration data"),
    "another size": (
        lambda inputs: [[F.pad(inputs[0][0], (1, 1))]],
        r"got x of shape \(64, 1, 16, 18\), torch.float32, in batch 0",
    ),
    "another type": (
        lambda inputs: [[inputs[0][0].double()]],
        r"got x of shape \(64, 1, 16, 16\), torch.float64, in batch 0",
    ),
    "too many": (lambda inputs: [inputs[0] * 2], "got 2 inputs in batch 0 .* wanted 1: x"),
}


@pytest.mark.parametrize("kind", BAD)
def test_calibration_data_of_no_use(net, calibration, tmp_path, kind):
    spoil, why = BAD[kind]
    inputs = spoil([[each.clone() for each in batch] for batch in calibration[0]])
    path = tmp_path / "net.onnx"
    path.write_text("old")
    given = read_example(net, torch.zeros(2, 1, 16, 16))
    with pytest.raises(UsageError, match=why):
        int8.write(net, path, given, META, calibration=inputs)
    assert [each.read_text() for each in tmp_path.iterdir()] == ["old"]
