"""The arithmetic against numpy, torch, and numbers worked out by hand."""

from __future__ import annotations

import contextlib
import json
import math
import pickle
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from spiritlevel.errors import UsageError
from spiritlevel.explain import (
    AXES,
    MAX_NUMBERS,
    SETTLED,
    Root,
    decimal,
    exact,
    explain_array,
    explain_numbers,
    load_array,
    parse_number,
    parse_numbers,
    readable,
    root,
    rounded,
    to_json,
)

F = Fraction
decimals = st.decimals(-1000, 1000, places=3).map(Fraction)
lists = st.lists(decimals, min_size=1, max_size=20)
spread = lists.filter(lambda values: len(set(values)) > 1)
# No deadline: a busy machine is no failure.
patient = settings(deadline=None, max_examples=50)
positive = st.fractions(F(1, 100), 100, max_denominator=100)


def numbers(text):
    return explain_numbers(parse_numbers(text))


class TestArticle:
    """[1, 3, 5], as the article has it, and what it rounds."""

    told = numbers("1 3 5")

    def test_steps(self):
        assert self.told.mean == 3
        assert self.told.differences == (-2, 0, 2)
        assert self.told.squares == (4, 0, 4)
        assert self.told.variance == F(8, 3)
        assert rounded(self.told.variance) == "2.6667"
        assert (str(self.told.deviation), rounded(self.told.deviation)) == ("√(8/3)", "1.6330")
        assert [str(x) for x in self.told.normalized.results] == ["-√(3/2)", "0", "√(3/2)"]
        assert [rounded(x) for x in self.told.normalized.results] == ["-1.2247", "0.0000", "1.2247"]

    def test_check(self):
        assert (self.told.normalized.mean, self.told.normalized.variance) == (0, 1)

    def test_where_its_1_23_comes_from(self):
        early = self.told.normalized.rounded_early
        assert early.deviation == F("1.63")
        assert early.result_early == 2 / F("1.63")
        assert (rounded(early.result, 2), rounded(early.result_early, 2)) == ("1.22", "1.23")
        assert early.variance == F(8, 3) / F("1.63") ** 2 != 1

    def test_running_average(self):
        assert self.told.unbiased_variance == 4
        assert (self.told.running_mean, self.told.running_variance) == (F("0.3"), F("1.3"))

    def test_torch_eps(self):
        assert self.told.variance_with_torch_eps == F(8, 3) / (F(8, 3) + F(1, 100_000))


class TestNumbers:
    @patient
    @given(spread)
    def test_normalized_is_exactly_0_and_1(self, values):
        normalized = explain_numbers(values).normalized
        squares = [x.square if isinstance(x, Root) else x**2 for x in normalized.results]
        assert sum(squares) / len(squares) == normalized.variance == 1
        assert normalized.mean == 0
        assert sum(decimal(x) for x in normalized.results) == pytest.approx(0, abs=1e-20)

    @patient
    @given(spread, positive, decimals)
    def test_scale_and_shift_of_the_input_change_nothing(self, values, a, b):
        moved = explain_numbers([a * x + b for x in values])
        assert moved.normalized.results == explain_numbers(values).normalized.results

    @patient
    @given(spread, positive, decimals, decimals)
    def test_against_torch(self, values, eps, gamma, beta):
        told = explain_numbers(values, eps=eps, gamma=gamma, beta=beta)
        x = torch.tensor([[float(value)] for value in values], dtype=torch.float64)
        weight, bias = x.new_tensor([float(gamma)]), x.new_tensor([float(beta)])
        mean, variance = x.new_zeros(1), x.new_ones(1)
        y = torch.nn.functional.batch_norm(
            x, mean, variance, weight, bias, training=True, momentum=0.1, eps=float(eps)
        )
        outputs = [float(decimal(output)) for output in told.normalized.outputs]
        np.testing.assert_allclose(outputs, y[:, 0].numpy(), rtol=1e-9, atol=1e-9)
        assert float(told.running_mean) == pytest.approx(mean.item(), abs=1e-10)
        assert float(told.running_variance) == pytest.approx(variance.item(), rel=1e-10)

    @patient
    @given(lists)
    def test_against_numpy(self, values):
        told = explain_numbers(values)
        x = np.array([float(value) for value in values])
        assert float(told.mean) == pytest.approx(x.mean(), abs=1e-10)
        assert float(told.variance) == pytest.approx(x.var(), rel=1e-9, abs=1e-10)
        assert float(decimal(told.deviation)) == pytest.approx(x.std(), rel=1e-9, abs=1e-5)

    @patient
    @given(spread, positive)
    def test_eps_takes_its_share_of_the_variance(self, values, eps):
        told = explain_numbers(values, eps=eps)
        assert told.normalized.variance == told.variance / (told.variance + eps) < 1

    def test_far_mean(self):
        far = explain_numbers([10**21 + x for x in (F(1), F(3), F(5))])
        assert far.normalized.results == numbers("1 3 5").normalized.results
        assert (far.mean, far.variance) == (10**21 + 3, F(8, 3))

    def test_decimals_are_not_floats(self):
        told = numbers("0.1 0.2 0.3")
        assert told.mean == F(1, 5)
        assert told.variance == F(1, 150)

    def test_a_constant_is_0_over_0(self):
        assert numbers("2 2 2").normalized is None
        with_eps = explain_numbers([F(2)] * 3, eps=F("1e-5")).normalized
        assert (with_eps.results, with_eps.variance) == ((0, 0, 0), 0)

    def test_one_number(self):
        told = numbers("7")
        assert (told.mean, told.variance, told.normalized) == (7, 0, None)
        assert (told.unbiased_variance, told.running_variance) == (None, None)

    @patient
    @given(spread)
    def test_rounding_early_is_told_where_it_shows(self, values):
        told = explain_numbers(values)
        short = F(rounded(told.deviation, 2))
        if not short:
            assert told.normalized.rounded_early is None
            return
        pairs = zip(told.differences, told.normalized.results, strict=True)
        shows = {d for d, result in pairs if rounded(result, 2) != rounded(d / short, 2)}
        early = told.normalized.rounded_early
        assert (early.difference if early else None) == (max(shows) if shows else None)

    def test_no_rounding_note_where_the_deviation_has_two_decimals(self):
        assert numbers("1 2").normalized.rounded_early is None

    @pytest.mark.parametrize(
        ("wrong", "text"),
        [
            ({"eps": F(-1)}, "got eps = -1, wanted 0 or more"),
            ({"momentum": F("1.5")}, "got momentum = 1.5, wanted 0 to 1"),
            ({"momentum": F(-1)}, "got momentum = -1, wanted 0 to 1"),
        ],
    )
    def test_wrong_settings(self, wrong, text):
        with pytest.raises(UsageError, match=text):
            explain_numbers([F(1), F(2)], **wrong)
        with pytest.raises(UsageError, match=text):
            explain_array(np.ones((2, 2)), **{name: float(x) for name, x in wrong.items()})

    def test_no_numbers(self):
        with pytest.raises(UsageError, match="got no numbers"):
            explain_numbers([])


class TestWriting:
    @pytest.mark.parametrize(
        ("number", "text"),
        [
            (F(3), "3"),
            (F(1, 5), "0.2"),
            (F(-1, 4), "-0.25"),
            (F(8, 3), "8/3"),
            (F(10**6), "1000000"),
            (F(1, 10**14 + 1), None),
            (F(10**20), None),
            (root(F(8, 3)), "√(8/3)"),
            (root(F(2), -1), "-√2"),
            (root(F(9, 4), -1), "-1.5"),
            (root(F(6), -1, F(1, 2)), "-√6 + 1/2"),
            (root(F(6), 1, F(-1)), "√6 - 1"),
            (root(F(10**9, 10**9 + 1)), None),
        ],
    )
    def test_exact(self, number, text):
        assert exact(number) == text

    @pytest.mark.parametrize(
        ("number", "text"),
        [
            (F(8, 3), "2.6667"),
            (F(1, 32), "0.0313"),  # a half goes up, 0.03125
            (F(-1, 32), "-0.0313"),
            (F(-1, 10**9), "0.0000"),
            (F(10**100) + F(1, 3), "1" + "0" * 100 + ".3333"),
        ],
    )
    def test_rounded(self, number, text):
        assert rounded(number) == text

    @pytest.mark.parametrize(
        ("number", "text"),
        [
            (F(0), "0.0000"),
            (F(-299, 3), "-99.6667"),
            (F(1, 150), "0.0066667"),
            (F(2, 3 * 10**6), "6.6667e-7"),
            (F(10**12, 3), "3.3333e+11"),
            (root(F(2)), "1.4142"),
        ],
    )
    def test_readable(self, number, text):
        assert readable(number) == text

    @patient
    @given(st.fractions(0, 1000), st.sampled_from([-1, 1]), decimals)
    def test_root_against_math(self, square, sign, offset):
        expected = sign * math.sqrt(square) + offset
        assert float(decimal(root(square, sign, offset))) == pytest.approx(expected, abs=1e-9)

    @patient
    @given(st.fractions(-1000, 1000))
    def test_root_of_a_square_is_rational(self, x):
        assert root(x**2, -1 if x < 0 else 1) == x

    def test_json_keeps_the_exact_number(self):
        told = json.loads(json.dumps(to_json(numbers("1 3 5"))))
        assert told["variance"] == {"exact": "8/3", "value": 8 / 3}
        assert told["normalized"]["results"][2] == {"exact": "√(3/2)", "value": math.sqrt(1.5)}
        assert told["normalized"]["rounded_early"]["deviation"]["exact"] == "163/100"

    @patient
    @given(st.lists(decimals, min_size=1, max_size=5), st.sampled_from([F(0), F("1e-5")]))
    def test_json_has_no_nan(self, values, eps):
        json.dumps(to_json(explain_numbers(values, eps=eps)), allow_nan=False)


class TestParsing:
    @pytest.mark.parametrize(
        "text", ["1 3 5", "1,3,5", " 1, 3\n5\n", "1\t3\r\n5,", "1.0 3e0 +5", "0.1e1 30e-1 5."]
    )
    def test_separators_and_notations(self, text):
        assert parse_numbers(text) == (1, 3, 5)

    @patient
    @given(st.fractions(-(10**6), 10**6, max_denominator=1).map(int), st.integers(-90, 90))
    def test_exact(self, digits, exponent):
        assert parse_number(f"{digits}e{exponent}", "") == digits * F(10) ** exponent

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("1 abc", "got 'abc' at position 2, wanted a number such as 3, -0.5 or 1e3"),
            ("1,,2", "got '' at position 2, wanted a number"),
            ("1 2 nan", "got 'nan' at position 3, wanted a finite number"),
            ("-inf", "got '-inf' at position 1, wanted a finite number"),
            ("1e101", "wanted 0 or a size from 1e-100 to 1e100"),
            ("1e-999999999", "wanted 0 or a size from 1e-100 to 1e100"),
            ("0." + "1" * 101, "in at most 100 digits"),
            ("x" * 1000, f"got '{'x' * 40}...' at position 1"),
            (" \n", "got no numbers"),
            (",", "got no numbers"),
            ("1 " * (MAX_NUMBERS + 1), "got 10,001 numbers, wanted at most 10,000"),
        ],
    )
    def test_wrong(self, text, message):
        with pytest.raises(UsageError) as error:
            parse_numbers(text)
        assert message in str(error.value)

    def test_zero_of_any_exponent_is_quick(self):
        assert parse_number("0e999999999", "") == 0


def batch_norm(array, momentum=0.1, eps=1e-5):
    """torch's own layer in float64 for this array, and the array as a tensor."""
    layer = {2: torch.nn.BatchNorm1d, 3: torch.nn.BatchNorm1d}.get(array.ndim, torch.nn.BatchNorm2d)
    layer = torch.nn.BatchNorm3d if array.ndim == 5 else layer
    x = torch.from_numpy(np.ascontiguousarray(array, dtype=np.float64))
    return layer(array.shape[1], eps=eps, momentum=momentum, dtype=torch.float64), x


rng = np.random.default_rng(0)
ARRAYS = {
    "N x C": rng.normal(3, 2, (7, 3)),
    "N x C x L": rng.normal(size=(2, 3, 5)),
    "N x C x H x W": rng.normal(5, 2, (2, 3, 4, 5)),
    "N x C x D x H x W": rng.normal(size=(2, 2, 3, 2, 2)),
    "one channel": rng.normal(size=(3, 1, 2, 2)),
    "N = 1": rng.normal(size=(1, 2, 3, 3)),
    "float32": rng.normal(size=(4, 2, 3, 3)).astype(np.float32),
    "integers": rng.integers(0, 255, (4, 3, 2, 2), dtype=np.uint8),
    "far mean": rng.normal(1e6, 1e-2, (8, 2, 3, 3)),
    "zero variance": np.full((2, 3, 2, 2), 0.1),
    "non-contiguous": rng.normal(size=(5, 4, 3, 2)).transpose(3, 2, 1, 0)[:, ::-1],
}


@pytest.mark.parametrize("name", ARRAYS)
class TestArrays:
    def test_channels(self, name):
        array = ARRAYS[name]
        told = explain_array(array)
        axes = tuple(axis for axis in range(array.ndim) if axis != 1)
        flat = np.moveaxis(array, 1, 0).reshape(array.shape[1], -1).astype(np.float64)
        assert (told.shape, told.axes, told.count) == (array.shape, AXES[array.ndim], len(flat[0]))
        np.testing.assert_allclose([c.mean for c in told.channels], flat.mean(1), rtol=1e-12)
        np.testing.assert_allclose(
            [c.variance for c in told.channels],
            array.var(axis=axes, dtype=np.float64),
            rtol=1e-6,  # numpy's mean of values near 1e6 is off by 1e-10
            atol=1e-30,
        )
        np.testing.assert_allclose(
            [c.unbiased_variance for c in told.channels], flat.var(1, ddof=1), rtol=1e-6, atol=1e-30
        )
        listed = [list(c.values) for c in told.channels]
        assert listed == (flat.tolist() if told.count <= 12 else [[]] * len(flat))

    def test_normalized(self, name):
        told = explain_array(ARRAYS[name])
        for channel in told.channels:
            assert channel.normalized_mean == pytest.approx(0, abs=1e-9)
            short = channel.variance / (channel.variance + 1e-5)
            assert channel.normalized_variance == pytest.approx(short, rel=1e-9)

    def test_running_average_and_eval_against_torch(self, name):
        array = ARRAYS[name]
        layer, x = batch_norm(array)
        told = {step.step: step for step in explain_array(array, gamma=2, beta=-1).running}
        assert list(told) == [0, 1, 2, 5, 10, 50, None]
        torch.nn.init.constant_(layer.weight, 2)
        torch.nn.init.constant_(layer.bias, -1)
        for step in range(51):
            if step in told:
                self.compare(told[step], layer, x)
            train = layer.train()(x)
        assert explain_array(array, gamma=2, beta=-1).train_output == pytest.approx(
            train.flatten()[0].item(), abs=1e-6
        )
        assert told[None].running_mean == pytest.approx(explain_array(array).channels[0].mean)

    @staticmethod
    def compare(told, layer, x):
        assert told.running_mean == pytest.approx(layer.running_mean[0].item(), rel=1e-9)
        # torch's own variance cancels where the mean is far
        assert told.running_variance == pytest.approx(layer.running_var[0].item(), rel=1e-6)
        output = layer.eval()(x).flatten()[0].item()
        assert told.eval_output == pytest.approx(output, rel=1e-6, abs=1e-6)


class TestSettling:
    @patient
    @given(
        st.lists(st.floats(-50, 50, width=32), min_size=2, max_size=6),
        st.floats(0.05, 1),
        st.sampled_from([1e-5, 1e-3, 1.0]),
    )
    @example([0.0, 0.0], 1.0, 1e-5)
    def test_against_torch_step_by_step(self, values, momentum, eps):
        array = np.array(values, dtype=np.float64)[:, None]
        told = explain_array(array, momentum=momentum, eps=eps)
        layer, x = batch_norm(array, momentum, eps)
        last = (x - x.mean()) / (x.var() + eps).sqrt()
        off = []
        for _ in range(told.steps_to_settle + 5):
            off.append((layer.eval()(x) - last).abs().max().item())
            layer.train()(x)
        settled = told.steps_to_settle
        assert all(distance <= SETTLED + 1e-9 for distance in off[settled:])
        assert settled == 0 or off[settled - 1] > SETTLED - 1e-9

    def test_a_far_mean_takes_longer(self):
        near = np.array([[1.0], [3.0], [5.0]])
        steps = [explain_array(near + far).steps_to_settle for far in (0, 100, 10_000)]
        assert steps == sorted(set(steps))

    @pytest.mark.parametrize(("momentum", "steps"), [(0, None), (1e-9, None), (1, 1)])
    def test_ends(self, momentum, steps):
        told = explain_array(np.array([[1.0], [3.0], [5.0]]), momentum=momentum)
        assert told.steps_to_settle == steps

    def test_momentum_0_never_leaves_the_start(self):
        last = explain_array(np.array([[1.0], [3.0]]), momentum=0).running[-1]
        assert (last.step, last.running_mean, last.running_variance) == (None, 0, 1)

    def test_one_value_per_channel_has_nothing_to_average(self):
        told = explain_array(np.array([[1.0, 2.0]]))
        assert (told.running, told.steps_to_settle) == ((), None)
        with pytest.raises(ValueError, match="more than 1 value per channel"):
            torch.nn.BatchNorm1d(2)(torch.ones(1, 2))

    def test_a_constant_without_eps_is_0_over_0(self):
        told = explain_array(np.ones((4, 1)), eps=0)
        assert (told.train_output, told.running[-1].eval_output) == (None, None)
        assert told.channels[0].normalized_variance is None
        assert told.steps_to_settle is None
        json.dumps(to_json(told), allow_nan=False)


class TestWrongArrays:
    @pytest.mark.parametrize(
        ("array", "message"),
        [
            (np.ones(3), r"shape \(3,\), wanted N x C or N x C x H x W"),
            (np.ones((1,) * 6), "wanted N x C"),
            (np.float64(3), r"shape \(\), wanted N x C"),
            (np.ones((0, 3)), r"shape \(0, 3\), wanted 1 to 100,000,000 values"),
            (np.broadcast_to(np.ones(1), (2, 100_001)), "at most 100,000 channels"),
            (np.ones((2, 2), complex), "got an array of complex128, wanted real numbers"),
            (np.array([["a"]]), "wanted real numbers"),
            (np.array([[True]]), "got an array of bool"),
            (np.array([[1, np.nan], [1, 1]]), r"got nan in channel 1 \(1 of 2 values\)"),
            (np.array([[-np.inf]]), "got -inf in channel 0"),
            (np.array([[1e101]]), "wanted finite numbers up to 1e100"),
        ],
    )
    def test_wrong(self, array, message):
        with pytest.raises(UsageError, match=message):
            explain_array(np.asarray(array))

    def test_file_round_trip(self, tmp_path):
        np.save(tmp_path / "x.npy", ARRAYS["N x C"])
        assert explain_array(load_array(tmp_path / "x.npy")) == explain_array(ARRAYS["N x C"])

    def test_pickled_objects_are_never_loaded(self, tmp_path):
        loaded = tmp_path / "loaded"
        np.save(tmp_path / "x.npy", np.array([[Trap(loaded)]], dtype=object))
        (tmp_path / "plain.npy").write_bytes(pickle.dumps(Trap(loaded)))
        for name in ("x.npy", "plain.npy"):
            with pytest.raises(UsageError, match="pickled objects are never loaded"):
                load_array(tmp_path / name)
        assert not loaded.exists()

    @patient
    @given(st.data())
    def test_broken_files(self, tmp_path_factory, data):
        path = tmp_path_factory.mktemp("npy") / "x.npy"
        np.save(path, np.ones((2, 2)))
        content = bytearray(path.read_bytes())
        for _ in range(data.draw(st.integers(0, 3))):
            content[data.draw(st.integers(6, 127))] = data.draw(st.integers(0, 255))
        path.write_bytes(content[: data.draw(st.integers(6, len(content)))])
        with contextlib.suppress(UsageError):
            explain_array(load_array(path))


class Trap:
    """Leaves a file where it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return type(self.path).touch, (self.path,)
