import pytest
import torch

from spiritlevel.errors import UsageError
from spiritlevel.train.group import Group, Place, joined, place

WHOLE = {
    "RANK": "1",
    "WORLD_SIZE": "4",
    "LOCAL_RANK": "1",
    "MASTER_ADDR": "localhost",
    "MASTER_PORT": "1",
    "TORCHELASTIC_RESTART_COUNT": "2",
}


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    for name in WHOLE:
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def given(environment, **variables):
    for name, value in variables.items():
        environment.setenv(name, value)
    return place()


def test_a_process_alone(environment):
    assert place() == Place(0, 1, 0, restarted=False)
    assert given(environment, TORCHELASTIC_RESTART_COUNT="2") == Place()
    with joined("cpu") as group:
        assert (group.rank, group.size, group.leads) == (0, 1, True)


def test_as_torchrun_sets_them(environment):
    assert given(environment, **WHOLE) == Place(1, 4, 1, restarted=True)


@pytest.mark.parametrize(
    ("variables", "told"),
    [
        ({"WORLD_SIZE": "2"}, "got WORLD_SIZE in the environment, and no RANK, MASTER_ADDR"),
        ({"RANK": "1"}, "got RANK in the environment, and no WORLD_SIZE, MASTER_ADDR"),
        ({**WHOLE, "MASTER_PORT": ""}, "and no MASTER_PORT; wanted all, as torchrun sets them"),
        ({**WHOLE, "WORLD_SIZE": "x"}, "got RANK='1' of WORLD_SIZE='x' in the environment"),
        ({**WHOLE, "WORLD_SIZE": "1"}, "got RANK='1' of WORLD_SIZE='1' in the environment"),
    ],
)
def test_half_of_them_is_refused(environment, variables, told):
    with pytest.raises(UsageError, match=told):
        given(environment, **variables)


@pytest.mark.parametrize("device", ["tpu", "meta", "cpu:x"])
def test_a_device_that_is_none_is_refused(device):
    with pytest.raises(UsageError, match="wanted auto, cpu, cuda or cuda:N"), joined(device):
        pass


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_refused():
    with pytest.raises(UsageError, match="of which this torch sees none"), joined("cuda:0"):
        pass


def test_alone_there_is_nothing_to_agree_on():
    group = Group()
    assert group.rows([1, 2.5]).tolist() == [[1.0, 2.5]]
    assert (group.objects("a"), group.first("b"), group.agreed(lambda: 3)) == (["a"], "b", 3)
    with pytest.raises(UsageError, match="mine"):
        group.agreed(lambda: raises("mine"))


def raises(text):
    raise UsageError(text)
