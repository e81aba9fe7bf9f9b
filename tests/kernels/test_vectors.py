"""Functions that are linked into one kernel have a name each."""

from collections import Counter

import pytest

from spiritlevel.kernels import (
    branched,
    cheap,
    compiled,
    gates,
    mapped,
    mixed,
    products,
    sliding,
)

MODULES = [branched, cheap, gates, mapped, mixed, products, sliding]


@pytest.mark.parametrize("module", MODULES, ids=lambda m: m.__name__)
def test_no_two_functions_share_a_name(module, monkeypatch):
    """Two of one name, from files of two processes, may be linked one in the other's place."""
    names, named = [], compiled.named

    def noting(function):
        function = named(function)
        names.append(f"{function.__module__}.{function.__qualname__}")
        return function

    monkeypatch.setattr(compiled, "named", noting)
    products.products.cache_clear()
    for kind in ("f32", "bf16"):
        module.passes(kind)
    assert names
    assert [name for name, times in Counter(names).items() if times > 1] == []
