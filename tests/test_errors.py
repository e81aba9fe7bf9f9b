import inspect
import json

import pytest

from spiritlevel import errors
from spiritlevel.errors import MissingExtra, SpiritlevelError, require


def drawn_tree():
    """(class, parent, builtin base or None) for each line of the tree in the module's docstring."""
    lines = [line for line in errors.__doc__.splitlines() if "── " in line]
    above = [SpiritlevelError.__name__]
    for line in lines:
        branch, _, text = line.partition("── ")
        depth = len(branch) // 4 + 1
        name, *rest = text.split()
        above[depth:] = [name]
        builtin = rest[0].strip("()") if rest[0].startswith("(") else None
        yield name, above[depth - 1], builtin


def test_the_tree_is_as_drawn():
    defined = {
        name: cls
        for name, cls in vars(errors).items()
        if inspect.isclass(cls) and cls.__module__ == errors.__name__ and name[0] != "_"
    }
    tree = list(drawn_tree())
    assert {name for name, _, _ in tree} == defined.keys() - {"SpiritlevelError"}
    for name, parent, builtin in tree:
        bases = [base.__name__ for base in defined[name].__bases__]
        assert bases == ([parent, builtin] if builtin else [parent])


def test_all_errors_are_public():
    tree = {"SpiritlevelError"} | {name for name, _, _ in drawn_tree()}
    assert set(errors.__all__) == tree | {"did_you_mean", "require"}


def test_a_package_that_is_there():
    assert require("json", extra="study") is json
    assert require("json.decoder", extra="study") is json.decoder


def test_a_package_that_is_missing():
    with pytest.raises(MissingExtra) as caught:
        require("no_such_package.inner", extra="study")
    assert str(caught.value) == (
        "no_such_package is not installed; it comes with the extra 'study'. "
        "Install it: pip install 'spiritlevel[study]'"
    )
    assert caught.value.name == "no_such_package"
    assert isinstance(caught.value.__cause__, ModuleNotFoundError)


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("import its_missing_dependency", "No module named 'its_missing_dependency'"),
        ("raise ImportError('needs a newer numpy')", "needs a newer numpy"),
        ("1 / 0", "division by zero"),
    ],
)
def test_a_package_that_is_broken_shows_its_own_fault(tmp_path, monkeypatch, source, text):
    (tmp_path / "broken_package.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises((ImportError, ArithmeticError), match=text) as caught:
        require("broken_package", extra="study")
    assert not isinstance(caught.value, MissingExtra)


@pytest.mark.parametrize("module", ["old_package.newer_part", "old_package_itself"])
def test_a_package_that_lacks_a_part_is_not_called_missing(tmp_path, monkeypatch, module):
    (tmp_path / "old_package").mkdir()
    (tmp_path / "old_package" / "__init__.py").touch()
    (tmp_path / "old_package_itself.py").write_text("from old_package_itself import newer_part")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ImportError) as caught:
        require(module, extra="study")
    assert not isinstance(caught.value, MissingExtra)
