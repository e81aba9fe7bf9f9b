"""The probe in loops that others write: DistributedDataParallel, Lightning, Hugging Face."""

import copy
import math
import os
from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.multiprocessing import spawn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import spiritlevel as sl
from spiritlevel.probe.counting import Mode
from spiritlevel.probe.watch import Probe

TRAIN = Mode(True, True)


def net():
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, 4)
    )


def images(n=64):
    generator = torch.Generator().manual_seed(5)
    return torch.randn(n, 3, 6, 6, generator=generator), torch.arange(n) % 4


def _rank(rank, folder, probing):
    os.environ["MASTER_ADDR"] = "127.0.0.1"
    store = torch.distributed.FileStore(os.path.join(folder, f"store-{probing}"), 2)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)
    model = nn.parallel.DistributedDataParallel(net())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x, y = (half[rank::2] for half in images())

    def train():
        for i in range(4):
            optimizer.zero_grad()
            F.cross_entropy(model(x[8 * i : 8 * i + 8]), y[8 * i : 8 * i + 8]).backward()
            optimizer.step()

    found = {}
    if probing:
        with Probe(model, every=2) as probe:
            train()
        found = {
            "steps": probe.counts.steps,
            "writes": probe.counts.layers["module.1"].writes[TRAIN],
            "sampled": probe.readings.steps,
            "means": probe.readings.of("module.1", "input_mean"),
        }
    else:
        train()
    torch.save((model.module.state_dict(), found), os.path.join(folder, f"{rank}-{probing}.pt"))
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_distributed_data_parallel(tmp_path):
    for probing in (True, False):
        spawn(_rank, (str(tmp_path), probing), nprocs=2)
    states = {}
    means = []
    for rank in (0, 1):
        states[rank], found = torch.load(tmp_path / f"{rank}-True.pt")
        plain, _ = torch.load(tmp_path / f"{rank}-False.pt")
        assert (found["steps"], found["writes"], found["sampled"]) == (4, 4, [0, 2])
        means.append(found["means"])
        for key, value in plain.items():
            assert torch.equal(states[rank][key], value), key
    assert means[0] != means[1]  # each rank reads its own half


def test_a_wrapper_may_be_probed_or_what_it_wraps():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    wrapped = nn.Sequential(model)
    x, y = images()
    with Probe(wrapped) as outer, Probe(model) as inner:
        for _ in range(3):
            optimizer.zero_grad()
            F.cross_entropy(wrapped(x), y).backward()
            optimizer.step()
    assert outer.counts.steps == inner.counts.steps == 3
    assert outer.counts.layers["0.1"].writes == inner.counts.layers["1"].writes == {TRAIN: 3}


def test_what_another_method_runs_is_a_pass_if_it_is_said_to_be():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net()

        def loss(self, x, y):
            return F.cross_entropy(self.net(x), y)

    x, y = images()
    found = []
    for said in (True, False):
        model = Own()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with Probe(model, every=1) as probe:
            for _ in range(3):
                optimizer.zero_grad()
                with probe.forward_pass() if said else nullcontext():
                    loss = model.loss(x, y)
                loss.backward()
                optimizer.step()
            with pytest.raises(ZeroDivisionError), probe.forward_pass():
                1 / 0  # noqa: B018
            with torch.no_grad(), probe.forward_pass():
                model.loss(x, y)
        found.append(probe)
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Probe(model, every=1) as own:
        for _ in range(3):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
    told, untold = found
    assert told.readings.of("net.1", "z_max") == own.readings.of("1", "z_max")
    assert all(math.isnan(z) for z in untold.readings.of("net.1", "z_max"))
    assert (told.counts.per_step, untold.counts.per_step) == ({1: 3}, {0: 3})
    assert told.counts.forwards == {TRAIN: 4, Mode(True, False): 1}


def test_bfloat16_autocast_is_read_and_not_changed():
    def trained(probing):
        model = net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        x, y = images()

        def train():
            for _ in range(3):
                optimizer.zero_grad()
                with torch.autocast("cpu", torch.bfloat16):
                    loss = F.cross_entropy(model(x), y)
                loss.backward()
                optimizer.step()

        if not probing:
            train()
            return model, None
        with Probe(model, every=1) as probe:
            train()
        return model, probe

    model, probe = trained(True)
    plain, _ = trained(False)
    for key, value in plain.state_dict().items():
        assert torch.equal(model.state_dict()[key], value)
    assert 0.1 < probe.readings.of("1", "input_var")[0] < 10
    assert probe.readings.of("1", "non_finite") == [0, 0, 0]


def lightning_module(lightning, model):
    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = model

        def training_step(self, batch, _index):
            x, y = batch
            return F.cross_entropy(self.net(x), y)

        def validation_step(self, batch, _index):
            self.net(batch[0])

        def configure_optimizers(self):
            return torch.optim.SGD(self.net.parameters(), lr=0.1)

    return Module()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Lightning warns of workers, loggers and much else
def test_lightning(tmp_path):
    lightning = pytest.importorskip("lightning.pytorch", reason="Lightning is not installed")
    data = DataLoader(TensorDataset(*images()), batch_size=16)

    def trained(probing):
        module = lightning_module(lightning, net())
        trainer = lightning.Trainer(
            max_epochs=2,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            accumulate_grad_batches=2,
            num_sanity_val_steps=0,
            default_root_dir=tmp_path,
        )
        if not probing:
            trainer.fit(module, data, data)
            return module, None
        with Probe(module.net, every=2) as probe:
            trainer.fit(module, data, data)
        return module, probe

    module, probe = trained(True)
    plain, _ = trained(False)
    for key, value in plain.state_dict().items():
        assert torch.equal(module.state_dict()[key], value)
    assert (probe.counts.steps, probe.counts.skipped) == (4, 0)
    assert probe.counts.per_step == {2: 4}
    counted = probe.counts.layers["1"]
    assert counted.writes == {TRAIN: 8}
    assert counted.forwards[Mode(False, False)] == 8


class Classifier(nn.Module):
    """What the Trainer of Hugging Face wants: a loss when there are labels."""

    def __init__(self):
        super().__init__()
        self.net = net()

    def forward(self, pixel_values, labels=None):
        logits = self.net(pixel_values)
        return {"loss": F.cross_entropy(logits, labels), "logits": logits}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_trainer_of_hugging_face(tmp_path):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    pytest.importorskip("accelerate", reason="accelerate is not installed")
    x, y = images()
    rows = [{"pixel_values": a, "labels": b} for a, b in zip(x, y, strict=True)]

    def trained(probing):
        model = Classifier()
        arguments = transformers.TrainingArguments(
            output_dir=str(tmp_path),
            num_train_epochs=2,
            per_device_train_batch_size=8,
            gradient_accumulation_steps=2,
            report_to=[],
            save_strategy="no",
            use_cpu=True,
            disable_tqdm=True,
            seed=3,
        )
        trainer = transformers.Trainer(model, arguments, train_dataset=rows)
        if not probing:
            trainer.train()
            return model, None
        with Probe(model, every=4) as probe:
            trainer.train()
        return model, probe

    model, probe = trained(True)
    plain, _ = trained(False)
    for key, value in plain.state_dict().items():
        assert torch.equal(model.state_dict()[key], value)
    assert (probe.counts.steps, probe.counts.skipped) == (8, 0)
    assert probe.counts.layers["net.1"].per_step == {2: 8}
    assert probe.readings.steps == [0, 4]


def test_a_mean_teacher_beside_the_student_is_counted_apart():
    student = net()
    teacher = copy.deepcopy(student).requires_grad_(False)
    both = nn.ModuleDict({"student": student, "teacher": teacher})
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    x, y = images()
    with Probe(both) as probe:
        for _ in range(3):
            optimizer.zero_grad()
            with torch.no_grad():
                wanted = teacher(x)
            (F.cross_entropy(student(x), y) + F.mse_loss(student(x), wanted)).backward()
            optimizer.step()
            with torch.no_grad():
                for p, q in zip(teacher.parameters(), student.parameters(), strict=True):
                    p.lerp_(q, 0.1)
    layers = probe.counts.layers
    assert layers["student.1"].writes == {TRAIN: 6}
    assert layers["teacher.1"].writes == {Mode(True, False): 3}
    assert layers["student.1"].per_step == {2: 3}
    assert layers["teacher.1"].per_step == {0: 3}


def test_a_page_of_it(tmp_path):
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x, y = images()
    with Probe(model, every=2) as probe:
        for _ in range(6):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
    page = probe.report(tmp_path / "probe.html").read_text()
    assert page.lower().startswith("<!doctype html>")
    assert "Sequential" in page
    assert [each.name for each in tmp_path.iterdir()] == ["probe.html"]
    with pytest.raises(sl.errors.UsageError, match="while writing"):
        probe.report(tmp_path / "nowhere" / "probe.html")
