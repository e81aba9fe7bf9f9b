import pytest

from spiritlevel.bench import scale
from spiritlevel.bench.scale import sent
from spiritlevel.errors import UsageError


def test_the_formula_is_of_rings_and_an_all_gather():
    alone, two, many = (sent(n, 1000, (4, 6)) for n in (1, 2, 1024))
    assert alone == {"gradients": 0, "forward": 0, "backward": 0}
    assert two == {"gradients": 4000, "forward": 8 * (2 * 10 + 2), "backward": 8 * 2 * 10}
    assert many["gradients"] == pytest.approx(8000, rel=1e-2)
    assert many["forward"] == 1023 * two["forward"]


@pytest.mark.slow
def test_what_is_sent_is_what_the_formula_says():
    found = scale(model="ghostnet_050", size=32, batch=2, rounds=3)
    one, two = found["cases"]
    assert (one["processes"], two["processes"]) == (1, 2)
    for row in (one, two):
        assert set(row["seconds"]) == {"batch", "sync"}
    if "bytes_a_process" in two:  # the loopback device of Linux tells
        seen, formula = two["bytes_a_process"], two["formula"]
        assert seen["batch"] == pytest.approx(formula["gradients"], rel=0.1)
        assert seen["sync"] == pytest.approx(sum(formula.values()), rel=0.15)


@pytest.mark.parametrize("wrong", [{"processes": ()}, {"processes": (0,)}, {"batch": 1}])
def test_what_cannot_be_is_refused(wrong):
    with pytest.raises(UsageError, match="processes, batch"):
        scale(**wrong)
