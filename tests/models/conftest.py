import pytest

from spiritlevel.models import aside


@pytest.fixture(autouse=True)
def warned_anew():
    aside._warn.cache_clear()
    yield
    aside._warn.cache_clear()
