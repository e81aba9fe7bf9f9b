from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from set_files import cifar_batch

from spiritlevel.data.unpickle import Array, Refused, read_pickle

DATA = np.arange(6, dtype=np.uint8).reshape(2, 3)


def refusal(content: bytes) -> str:
    with pytest.raises(Refused) as caught:
        read_pickle(content)
    return str(caught.value)


def test_a_batch_as_python_2_wrote_it():
    content = cifar_batch(DATA, [3, 300])
    theirs = pickle.loads(content, encoding="bytes")  # noqa: S301 - made by this test
    ours = read_pickle(content)
    assert np.array_equal(theirs[b"data"], DATA)
    assert isinstance(ours[b"data"], Array)
    assert np.array_equal(ours.pop(b"data").value, theirs.pop(b"data"))
    assert ours == theirs
    assert ours[b"labels"] == [3, 300]


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4])
@pytest.mark.parametrize(
    "value",
    [
        {b"a": [1, -1, 255, 256, 70_000, 2**31, True, None], "b": ("x", b"\xff\0", (), [], {})},
        [[b"shared"] * 3, ((1,), (1, 2), (1, 2, 3), (1, 2, 3, 4))],
    ],
)
def test_plain_values_as_python_3_writes_them(protocol, value):
    assert read_pickle(pickle.dumps(value, protocol)) == value


@pytest.mark.parametrize("order", ["C", "F"])
def test_an_array_as_python_3_writes_it(order):
    content = pickle.dumps({b"data": np.asarray(DATA, order=order)}, 2)
    assert np.array_equal(read_pickle(content)[b"data"].value, DATA)


class Hostile:
    """Whoever unpickles it makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_a_hostile_pickle_is_refused_by_name_and_not_run(tmp_path, protocol):
    path = tmp_path / "made"
    content = pickle.dumps({b"data": DATA, b"labels": Hostile(path)}, protocol)
    hostile = pickle.dumps([Hostile(path)], protocol)
    pickle.loads(hostile)  # noqa: S301 - shows that it works
    path.rmdir()
    assert refusal(hostile) == "it names posix.mkdir, which could be called"
    assert refusal(content).startswith("it names ")
    assert not path.exists()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"cbuiltins\neval\n.", "it names builtins.eval, which could be called"),
        (b"cnumpy\nload\n.", "it names numpy.load, which could be called"),
        (b"\x80\x04\x8c\x02os\x8c\x06system\x93.", "it names os.system, which could be called"),
        (b"(ios\nsystem\n.", "it uses the instruction INST"),
        (b"(cnumpy\nndarray\no.", "it uses the instruction OBJ"),
        (b"cnumpy\nndarray\n)\x81.", "it uses the instruction NEWOBJ"),
        (b"\x82\x01.", "it uses the instruction EXT1"),
        (b"Pid\n.", "it uses the instruction PERSID"),
        (b"cnumpy\nndarray\n)R.", "it calls what is no function"),
        (b"K\x01)R.", "it calls what is no function"),
        (b"}(K\x01tb.", "it gives a state to what has none"),
        (b"cnumpy\nndarray\n}b.", "it gives a state to what has none"),
        (b"\x96" + b"\xff" * 7 + b"\x7f.", "it is no whole pickle"),  # BYTEARRAY8 of 2**63 bytes
        (b"Nr\xff\xff\xff\x7f0.", "it uses the instruction POP"),  # a memo of 2**31 places
        (b"", "it is no whole pickle"),
        (b"K", "it is no whole pickle"),
        (b"K\x01", "it is no whole pickle"),
        (b".", "it is no whole pickle"),
        (b"u.", "it is no whole pickle"),
        (b"(K\x01d.", "it is no whole pickle"),
        (b"U\x05ab", "it is no whole pickle"),
        (b"T\xff\xff\xff\x7fab", "it is no whole pickle"),
        (b"h\x05.", "it is no whole pickle"),
        (b"K\x01K\x02a.", "it is no whole pickle"),
        (b"\xff.", "it is no whole pickle"),
    ],
)
def test_anything_else_is_refused(content, reason):
    assert refusal(content).startswith(reason)


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (DATA.astype(np.int64), "it holds an array that is not of uint8"),
        (np.array([None, {}]), "it holds an array that is not of uint8"),
    ],
)
def test_an_array_of_another_kind(array, reason):
    assert refusal(pickle.dumps(array, 2)) == reason


@pytest.mark.parametrize(
    ("old", "new"),
    [(b"J\x02\0\0\0", b"J\xff\xff\xff\x7f"), (b"U\x06\0\1\2\3\4\5tb", b"U\x05\0\1\2\3\4tb")],
)
def test_an_array_whose_bytes_do_not_fit_its_shape(old, new):
    content = cifar_batch(DATA, [])
    assert content.count(old) == 1
    assert (
        refusal(content.replace(old, new)) == "it holds an array whose bytes do not fit its shape"
    )


def test_keys_that_take_for_ever_to_hash():
    """Tuples of the tuple before, twice: 2^60 steps for the hash of the last one."""
    pairs = b"".join(b"h%ch%c\x86q%c" % (i, i, i + 1) for i in range(60))
    why = "it holds a dict whose keys are not all text"
    assert refusal(b"\x80\x02)q\0" + pairs + b"}h\x3cK\x01s.") == why
    assert refusal(b"\x80\x02)q\0" + pairs + b"(h\x3cK\x01d.") == why
