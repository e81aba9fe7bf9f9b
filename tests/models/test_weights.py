import argparse
import json
import os
import re
import resource

import pytest
import torch
from foreign import DLi14, LateNormResNet56
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

import spiritlevel as sl
from spiritlevel.errors import UsageError
from spiritlevel.models import create_model, deploy, load_weights, read_metadata, save_weights


def settled(model: nn.Module) -> nn.Module:
    """Running statistics, factors and shifts that are not those it starts with."""
    torch.manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
    return model


def small(**options) -> nn.Module:
    torch.manual_seed(0)
    return create_model("ghostnet_050", 10, **options)


def same(one: nn.Module, other: nn.Module) -> bool:
    states = one.state_dict(), other.state_dict()
    return all(torch.equal(states[0][name], states[1][name]) for name in states[0])


# ---- layouts of others ---------------------------------------------------------------------------


def agree(theirs: nn.Module, ours: nn.Module, x: torch.Tensor) -> None:
    """Outputs, gradients and running statistics in train, then outputs in eval."""
    results = []
    for model in (theirs, ours):
        y = model.train()(x)
        y.square().sum().backward()
        norms = sorted(p.grad.norm().item() for p in model.parameters())
        statistics = sorted(b.double().norm().item() for b in model.buffers())
        results.append((y, torch.tensor(norms), torch.tensor(statistics), model.eval()(x)))
    torch.testing.assert_close(results[1], results[0], rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_weights_of_d_li14(tmp_path):
    theirs = settled(DLi14(classes=7).double())
    assert len(theirs.state_dict()) == 516
    torch.save(theirs.state_dict(), tmp_path / "w.pth")
    ours = create_model("ghostnet_100", 7, variant="d-li14", drop_rate=0).double()
    load_weights(ours, tmp_path / "w.pth")
    agree(theirs, ours, torch.randn(3, 3, 64, 64, dtype=torch.float64))


def test_the_variant_of_d_li14_has_its_counts():
    with torch.device("meta"):
        model = create_model("ghostnet_100", variant="d-li14")
    assert sum(p.numel() for p in model.parameters()) == 5_180_840
    assert sum(isinstance(m, nn.BatchNorm2d) for m in model.modules()) == 81
    assert len(model.state_dict()) == 516


@pytest.mark.slow
def test_weights_of_a_resnet_with_one_norm_after_the_concatenation(tmp_path):
    theirs = settled(LateNormResNet56().double())
    torch.save(theirs.state_dict(), tmp_path / "w.pth")
    options = {"placement": "post-concat", "ghost_stem": True, "option_a": False}
    ours = create_model("ghost_resnet56", 10, weights=None, **options).double()
    load_weights(ours, tmp_path / "w.pth")
    agree(theirs, ours, torch.randn(4, 3, 32, 32, dtype=torch.float64))


def test_weights_of_huaweis_third_version(tmp_path):
    """Its branches are `bn` where ours are `bn1`, and counters of operations stand among them."""
    model = settled(create_model("ghostnetv3_050", 5))
    theirs = {
        re.sub(r"(_rpr_[a-z.0-9]+)\.bn1\.", r"\1.bn.", k): v for k, v in model.state_dict().items()
    }
    assert sum(".bn." in name for name in theirs) > 1000
    theirs |= {"conv_stem.total_ops": torch.zeros(1), "total_params": torch.zeros(1)}
    torch.save({"state_dict": theirs}, tmp_path / "w.pth.tar")
    other = create_model("ghostnetv3_050", 5, weights=tmp_path / "w.pth.tar")
    assert same(model, other)


def test_weights_of_a_plain_resnet_whose_last_layer_is_linear(tmp_path):
    model = create_model("resnet56", 10)
    theirs = {f"module.{k.replace('fc.', 'linear.')}": v for k, v in model.state_dict().items()}
    torch.save({"state_dict": theirs, "best_prec1": 93.4}, tmp_path / "w.th.pt")
    assert same(model, create_model("resnet56", 10, weights=tmp_path / "w.th.pt"))


# ---- files ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["w.safetensors", "w.pth"])
def test_out_and_in_by_path_or_text(tmp_path, name):
    model = settled(small())
    save_weights(model, str(tmp_path / name))
    assert same(model, create_model("ghostnet_050", 10, weights=str(tmp_path / name)))
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_file_says_of_which_model_and_recipe_it_is(tmp_path):
    model = small(norm="batch:momentum=0.05", placement="both")
    recipe = {"lr": 0.4, "milestones": [30, 60]}
    save_weights(model, tmp_path / "w.safetensors", recipe=recipe)
    told = read_metadata(tmp_path / "w.safetensors")
    assert told["recipe"] == recipe
    assert told["model"]["name"] == "ghostnet_050"
    assert told["model"]["norm"] == "batch:momentum=0.05"
    made_again = create_model(**told["model"])
    assert made_again.state_dict().keys() == model.state_dict().keys()
    with safe_open(tmp_path / "w.safetensors", framework="pt") as file:
        assert file.metadata()["format"] == "pt"
        assert json.loads(file.metadata()["recipe"]) == recipe


def test_a_recipe_that_cannot_be_kept(tmp_path):
    model = nn.Linear(2, 2)
    with pytest.raises(UsageError, match=r"ends in \.safetensors"):
        save_weights(model, tmp_path / "w.pth", recipe={})
    with pytest.raises(UsageError, match="that JSON cannot hold"):
        save_weights(model, tmp_path / "w.safetensors", recipe={"loss": nn.Linear})
    assert list(tmp_path.iterdir()) == []


def test_names_that_share_memory_are_two_in_the_file(tmp_path):
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    save_weights(model, tmp_path / "w.safetensors")
    load_weights(model, tmp_path / "w.safetensors")
    assert model[1].weight is model[0].weight


def test_a_deployed_form_goes_out_and_in(tmp_path):
    model = deploy(settled(create_model("ghostnetv3_050", 5)))
    save_weights(model, tmp_path / "w.safetensors")
    told = read_metadata(tmp_path / "w.safetensors")["model"]
    assert told["deployed"] is True
    other = create_model(**told, weights=tmp_path / "w.safetensors")
    assert same(model, other)
    x = torch.randn(1, 3, 32, 32)
    assert torch.equal(other.eval()(x), model(x))


# ---- what does not fit ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("made", "told"),
    [
        (
            {"name": "ghostnet_100"},
            "It looks like the weights of create_model('ghostnet_100', num_cl",
        ),
        (
            {"name": "resnet50"},
            "It looks like the weights of create_model('resnet50', num_classes=10)",
        ),
        (
            {"name": "ghostnet_100", "variant": "d-li14"},
            "create_model('ghostnet_100', num_classes=10, variant='d-li14')",
        ),
        (
            {"name": "ghost_vgg16", "s": 3, "d": 5, "placement": "both"},
            "create_model('ghost_vgg16', num_classes=10, s=3, d=5, placement='both')",
        ),
        pytest.param(
            {"name": "ghostnetv3_050", "deployed": True},
            "create_model('ghostnetv3_050', num_classes=10, deployed=True)",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            {"name": "ghostnetv2_100", "in_chans": 1},
            "num_classes=10, in_chans=1)",
            marks=pytest.mark.slow,
        ),
        (
            {"name": "ghostnet_050", "num_classes": 4},
            "file's has 4 classes, the model's 10. Make the",
        ),
        ({"name": "ghostnet_050", "norm": "none"}, "num_classes=10, norm='none')"),
        ({"name": "ghostnet_050", "norm": "group:2"}, "num_classes=10, norm='group:1')"),
        (
            {"name": "ghostnet_050", "s": 3, "act": "silu"},
            "create_model('ghostnet_050', num_classes=10, s=3)",
        ),
    ],
)
def test_what_a_file_looks_like_instead_is_told(tmp_path, made, told):
    """Files of others tell by their shapes alone."""
    with torch.device("meta"):
        state = create_model(**{"num_classes": 10, **made}).state_dict()
    path = tmp_path / "w.pth"
    torch.save({name: torch.zeros(v.shape, dtype=v.dtype) for name, v in state.items()}, path)
    model = small()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(UsageError) as caught:
        load_weights(model, path)
    assert told in str(caught.value)
    assert "that do not fit GhostNet: it " in str(caught.value)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_what_is_nearly_a_model_or_none(tmp_path):
    state = create_model("ghostnet_100", 10).state_dict()
    state = {name: value for name, value in state.items() if not name.startswith("blocks.8.3")}
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(UsageError) as caught:
        load_weights(small(), tmp_path / "w.pth")
    assert "It looks most like the weights of create_model('ghostnet_100', num" in str(caught.value)
    assert "names and shapes 94 % of its are" in str(caught.value)
    torch.save({"a.b": torch.zeros(2)}, tmp_path / "w.pth")
    with pytest.raises(UsageError, match="It is like none of spiritlevel"):
        load_weights(small(), tmp_path / "w.pth")


def test_a_file_of_ours_says_itself_what_it_is(tmp_path):
    save_weights(create_model("ghostnet_050", 10, norm="group:2"), tmp_path / "w.safetensors")
    with pytest.raises(
        UsageError, match=r"saved from create_model\('ghostnet_050', num_classes=10, no"
    ):
        create_model("ghostnet_100", 10, weights=tmp_path / "w.safetensors")


def test_weights_with_statistics_for_a_model_that_has_none(tmp_path):
    save_weights(small(), tmp_path / "w.safetensors")
    with pytest.raises(
        UsageError, match="Make it with norm='batch', load, and give it other norms"
    ):
        small(norm="group:2", weights=tmp_path / "w.safetensors")


@pytest.mark.parametrize(
    ("made", "into", "told"),
    [
        ({"name": "ghostnet_100"}, {}, "of create_model('ghostnet_100', num_classes=7)."),
        (
            {"name": "ghostnet_100", "variant": "d-li14"},
            {},
            "of create_model('ghostnet_100', num_classes=7, variant='d-li14')",
        ),
        (
            {"name": "resnet56", "in_chans": 1},
            {},
            "of create_model('resnet56', num_classes=7, in_ch",
        ),
        ({"name": "ghostnet_100"}, {"new_head": True}, "('ghostnet_100', num_classes=7)."),
    ],
)
def test_safetensors_of_others_have_no_order_and_are_known(tmp_path, made, into, told):
    with torch.device("meta"):
        state = create_model(**{"num_classes": 7, **made}).state_dict()
    save_file({n: torch.zeros(v.shape) for n, v in state.items()}, tmp_path / "w.safetensors")
    with pytest.raises(UsageError) as caught:
        load_weights(small(), tmp_path / "w.safetensors", **into)
    assert told in str(caught.value)
    assert "Make that model, or take another file" in str(caught.value)


def test_d_li14s_names_and_matrices_are_known(tmp_path):
    with torch.device("meta"):
        state = DLi14(7).state_dict()
    torch.save({n: torch.zeros(v.shape) for n, v in state.items()}, tmp_path / "w.pth")
    with pytest.raises(UsageError, match=r"looks like the weights of .* variant='d-li14'"):
        create_model("ghostnet_100", 7, weights=tmp_path / "w.pth")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda v: v.to_sparse(), "is torch.sparse_coo torch.float32"),
        (lambda v: v.to(torch.complex64), "is torch.complex64"),
        (lambda v: v.to(torch.int8), "is torch.int8"),
        (
            lambda v: torch.quantize_per_tensor(v, 0.1, 0, torch.qint8),
            "is quantized torch.qint8",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore")  # of torch's, which is about to give quantization up
def test_numbers_of_another_kind_are_refused_and_nothing_is_loaded(tmp_path, change, told):
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    state = {name: torch.ones_like(value) for name, value in model.state_dict().items()}
    torch.save(state | {"1.weight": change(state["1.weight"])}, tmp_path / "w.pth")
    before = model[0].weight.clone()
    with pytest.raises(UsageError, match=f"whose 1.weight {told}"):
        load_weights(model, tmp_path / "w.pth")
    assert torch.equal(model[0].weight, before)


def test_a_model_without_memory_takes_no_weights(tmp_path):
    save_weights(nn.Linear(2, 2), tmp_path / "w.pth")
    with pytest.raises(UsageError, match="on the device meta"):
        load_weights(nn.Linear(2, 2, device="meta"), tmp_path / "w.pth")


def test_what_a_model_has_become_is_not_told_as_what_it_was(tmp_path):
    path = tmp_path / "w.safetensors"
    model = sl.convert(small(), "group:2")
    save_weights(model, path)
    assert read_metadata(path)["model"]["norm"] == "group:2"
    assert same(model, create_model(**read_metadata(path)["model"], weights=path))
    model.classifier = nn.Linear(1280, 3)
    save_weights(model, path)
    assert "model" not in read_metadata(path)
    save_weights(small(norm=nn.BatchNorm2d), path)
    assert "model" not in read_metadata(path)


@pytest.mark.parametrize("told", [[1, 2], "ghostnet_100", {"name": 3}, None])
def test_metadata_of_others_is_no_model_of_ours(tmp_path, told):
    path = tmp_path / "w.safetensors"
    save_file({"a": torch.zeros(2)}, path, {"model": json.dumps(told), "recipe": "[" * 5000})
    assert read_metadata(path) == {}
    with pytest.raises(UsageError, match="It is like none of spiritlevel"):
        load_weights(small(), path)


def test_hostile_files_are_refused(tmp_path):
    knot: dict[str, object] = {}
    knot["state_dict"] = knot
    torch.save(knot, tmp_path / "knot.pth")
    with pytest.raises(UsageError, match="hold a dict of state_dict"):
        load_weights(small(), tmp_path / "knot.pth")
    os.mkfifo(tmp_path / "pipe.pth")
    (tmp_path / "zero.safetensors").symlink_to("/dev/zero")
    for name in ("pipe.pth", "zero.safetensors"):
        with pytest.raises(UsageError, match="which is no regular file"):
            load_weights(small(), tmp_path / name)
    torch.save({"\x1b[2J" + "a" * 1000: torch.zeros(1)}, tmp_path / "w.pth")
    with pytest.raises(UsageError) as caught:
        load_weights(small(), tmp_path / "w.pth")
    assert "\x1b" not in str(caught.value)
    assert len(str(caught.value)) < 600
    torch.save({"classifier.weight": torch.zeros(1, 1).expand(2**62, 1)}, tmp_path / "w.pth")
    with pytest.raises(UsageError, match="has in another shape classifier"):
        load_weights(small(), tmp_path / "w.pth")


def test_a_pickle_that_is_refused_is_not_recommended(tmp_path):
    torch.save({"state_dict": {}, "args": argparse.Namespace(lr=1)}, tmp_path / "w.pth")
    with pytest.raises(UsageError, match=r"it holds argparse\.Namespace, which is no") as caught:
        load_weights(small(), tmp_path / "w.pth")
    assert "weights_only" not in str(caught.value)


def test_names_that_begin_as_a_wrapper_does_are_the_models_own(tmp_path):
    class Wrapper(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = nn.Linear(2, 2)

    one, other = Wrapper(), Wrapper()
    save_weights(one, tmp_path / "w.pth")
    load_weights(other, tmp_path / "w.pth")
    assert same(one, other)
    # In any order, and once more.
    state = {f"model.module._orig_mod.{k}": v for k, v in small().state_dict().items()}
    torch.save(state, tmp_path / "w.pth")
    load_weights(small(), tmp_path / "w.pth")


def test_counters_beside_are_of_no_weight(tmp_path):
    torch.save(
        {**nn.Linear(2, 2).state_dict(), "bn.num_batches_tracked": torch.tensor(3)},
        tmp_path / "w.pth",
    )
    load_weights(nn.Linear(2, 2), tmp_path / "w.pth")


class Counting(nn.Linear):
    def get_extra_state(self):
        return {"seen": self.seen}

    def set_extra_state(self, state):
        self.seen = state["seen"]


def test_what_is_no_tensor_goes_into_a_pickle_and_out(tmp_path):
    one, other = Counting(2, 2), Counting(2, 2)
    one.seen, other.seen = 3, 0
    with pytest.raises(UsageError, match=r"more than tensors \(_extra_state\)"):
        save_weights(one, tmp_path / "w.safetensors")
    save_weights(one, tmp_path / "w.pth")
    load_weights(other, tmp_path / "w.pth")
    assert other.seen == 3


def test_a_write_that_fails_keeps_the_file_before(tmp_path):
    path = tmp_path / "w.safetensors"
    save_weights(nn.Linear(2, 2), path)
    before = path.read_bytes()
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 10, limit[1]))
    try:
        with pytest.raises(UsageError, match="File too large"):
            save_weights(nn.Linear(200, 200), path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert path.read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == ["w.safetensors"]


def test_a_new_head_is_kept(tmp_path):
    save_weights(settled(small()), tmp_path / "w.safetensors")
    torch.manual_seed(0)
    fresh = create_model("ghostnet_050", 3)
    torch.manual_seed(0)
    tuned = create_model("ghostnet_050", 3, weights=tmp_path / "w.safetensors", new_head=True)
    assert torch.equal(tuned.classifier.weight, fresh.classifier.weight)
    assert torch.equal(tuned.bn1.running_mean, settled(small()).bn1.running_mean)
    with pytest.raises(UsageError, match="new_head=True without weights"):
        create_model("ghostnet_050", 3, new_head=True)
    with pytest.raises(UsageError, match="no linear layer"):
        load_weights(nn.Conv2d(1, 1, 1), tmp_path / "w.safetensors", new_head=True)


def test_frozen_norms_take_weights_of_batch_norms(tmp_path):
    save_weights(settled(small()), tmp_path / "w.safetensors")
    model = small(norm="frozen", weights=tmp_path / "w.safetensors")
    assert torch.equal(model.bn1.running_var, settled(small()).bn1.running_var)
