import json

from hypothesis import given
from hypothesis import strategies as st
from test_figures import opened

from spiritlevel.report.pool import pooled

scalars = st.none() | st.booleans() | st.integers(0, 3) | st.floats(0, 3) | st.text(max_size=3)
names = st.sampled_from(["x", "y", "a longer name"])
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(names, inner, max_size=3),
    max_leaves=40,
)


@given(values)
def test_what_was_pooled_comes_back_the_same(value):
    several = [value, {"again": value}, value]
    # In JSON, since 1, 1.0 and true are equal in Python and not the same on the page.
    assert json.dumps(opened(pooled(several))) == json.dumps(several)


def test_what_comes_again_is_written_once():
    long = [0.125 * step for step in range(50)]
    found = pooled([{"x": list(long), "y": [n, 5.5]} for n in range(9)])
    assert found["pool"] == [long]
    assert found["value"][8] == {"x": {"$": 0}, "y": [8, 5.5]}


def test_what_is_short_stays_where_it_is():
    assert pooled([[1, 2], [1, 2]]) == {"pool": [], "value": [[1, 2], [1, 2]]}


def test_what_is_only_equal_in_python_is_not_the_same():
    value = [{"a longer name": one} for one in (1, True, 1.0, 1, True, 1.0)]
    assert json.dumps(opened(pooled(value))) == json.dumps(value)
