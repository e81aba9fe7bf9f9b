"""`ProbeCallback` in the Trainer of Lightning, beside a loop of one's own.

Lightning takes long to import, hence all of it is slow.
"""

import pickle
import re
import subprocess
import sys

import pytest
import torch
from plain_loops import (
    Classifier,
    assert_read_alike,
    assert_same_state,
    hooks,
    images,
    net,
    plain,
    run_example,
)
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import spiritlevel as sl
from spiritlevel.probe.counting import Mode

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated"),
    pytest.mark.filterwarnings("ignore:The '[a-z]+_dataloader' does not have many workers"),
]


@pytest.fixture(scope="module", autouse=True)
def _library():
    """Imported here alone: every process of a test run collects this file."""
    global lightning, ProbeCallback, Module
    lightning = pytest.importorskip("lightning", reason="Lightning is not installed")
    from spiritlevel.integrations.lightning import ProbeCallback

    class Module(lightning.LightningModule):
        """It trains what it has, and is never called itself."""

        def __init__(self, before=lambda number: None):
            super().__init__()
            self.net, self.before, self.losses = net(), before, []

        def training_step(self, batch, index):
            self.before(index)
            x, y = batch
            loss = F.cross_entropy(self.net(x), y)
            self.losses.append(loss.item())
            return loss

        def validation_step(self, batch, _index):
            self.net(batch[0])

        def configure_optimizers(self):
            return torch.optim.SGD(self.net.parameters(), lr=0.1)


def trainer_of(folder, *callbacks, **options):
    given = {
        "max_epochs": 2,
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "log_every_n_steps": 1,
        "default_root_dir": folder,
    }
    return lightning.Trainer(callbacks=list(callbacks), **(given | options))


def loader(size=8):
    return DataLoader(TensorDataset(*images()), batch_size=size)


def test_it_reads_what_a_loop_of_ones_own_gives_and_changes_nothing(tmp_path):
    module, callback = Module(), ProbeCallback(every=2, report=tmp_path / "probe.html")
    trainer_of(tmp_path, callback).fit(module, loader(), loader())  # with a sanity check
    without = Module()
    trainer_of(tmp_path).fit(without, loader(), loader())
    assert_same_state(module, without)
    assert module.losses == without.losses
    own = Classifier()
    assert_read_alike(callback.probe, plain(own, every=2))
    assert_same_state(module, own)
    assert hooks(module) == 0
    assert "Module" in (tmp_path / "probe.html").read_text()
    assert sl.check(module, probe=callback.probe).ok


def test_accumulation_in_bfloat16_with_checkpoints(tmp_path):
    files = []

    def trained(*callbacks):
        module = Module()
        trainer = trainer_of(
            tmp_path, *callbacks, accumulate_grad_batches=2, precision="bf16-mixed"
        )
        files.append(tmp_path / f"{len(files)}.ckpt")
        module.on_train_epoch_end = lambda: trainer.save_checkpoint(files[-1])
        trainer.fit(module, loader(), loader())
        return module

    callback = ProbeCallback(every=2)
    assert_same_state(trained(callback), trained())
    counts = callback.probe.counts
    assert (counts.steps, counts.skipped, counts.per_step) == (8, 0, {2: 8})
    assert counts.layers["net.1"].writes == {Mode(True, True): 16}
    kept, plain_ones = (torch.load(file, weights_only=True) for file in files)
    assert kept.keys() == plain_ones.keys()
    assert kept["callbacks"] == plain_ones["callbacks"] == {}
    assert b"spiritlevel" not in files[0].read_bytes()


def test_a_step_that_the_scaler_skips_is_none(tmp_path):
    from lightning.pytorch.plugins import MixedPrecision

    class Overflows(Module):
        def training_step(self, batch, index):
            return super().training_step(batch, index) * (float("inf") if index == 3 else 1)

    scaled = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=16.0))
    module, callback = Overflows(), ProbeCallback(every=1)
    trainer_of(tmp_path, callback, plugins=[scaled]).fit(module, loader(), loader())
    counts = callback.probe.counts
    assert (counts.steps, counts.skipped, counts.per_step) == (14, 2, {1: 14})
    assert counts.layers["net.1"].per_step == {1: 14}
    without = Overflows()
    scaled = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=16.0))
    trainer_of(tmp_path, plugins=[scaled]).fit(without, loader(), loader())
    assert_same_state(module, without)


def test_an_optimizer_that_runs_the_step_several_times(tmp_path):
    class Searching(Module):
        def configure_optimizers(self):
            return torch.optim.LBFGS(self.net.parameters(), lr=0.1, max_iter=3)

    module, callback = Searching(), ProbeCallback(every=1)
    trainer_of(tmp_path, callback, max_epochs=1).fit(module, loader(), loader())
    counts = callback.probe.counts
    assert (counts.steps, sum(counts.layers["net.1"].per_step)) == (8, 3)
    assert all(z == z for z in callback.probe.readings.of("net.1", "z_median"))


@pytest.mark.parametrize("kind", [ZeroDivisionError, KeyboardInterrupt])
def test_an_error_leaves_no_hooks_and_the_page_is_written(tmp_path, kind):
    def before(index):
        if index == 3:
            raise kind("here")

    module = Module(before)
    callback = ProbeCallback(every=1, report=tmp_path / "probe.html")
    # Lightning makes an exit of what the keyboard interrupts.
    with pytest.raises(SystemExit if kind is KeyboardInterrupt else kind):
        trainer_of(tmp_path, callback).fit(module, loader(), loader())
    assert hooks(module) == 0
    assert callback.probe.readings.steps == [0, 1, 2]
    assert (tmp_path / "probe.html").exists()


def test_each_fit_has_a_probe_and_its_scalars_go_on(tmp_path):
    from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    module, callback = Module(), ProbeCallback(every=2)
    logger = TensorBoardLogger(tmp_path, name="", version="")
    trainer = trainer_of(tmp_path, callback, logger=[logger, CSVLogger(tmp_path)], max_epochs=1)
    trainer.fit(module, loader(), loader())
    first = callback.probe
    trainer.fit_loop.max_epochs = 2
    trainer.fit(module, loader(), loader())
    second = callback.probe
    assert (first.counts.steps, second.counts.steps, hooks(module)) == (8, 8, 0)
    events = EventAccumulator(str(tmp_path)).Reload()
    scalars = events.Scalars("z_median/net.1")
    assert [event.step for event in scalars] == [0, 2, 4, 6, 8, 10, 12, 14]
    wanted = [*first.readings.of("net.1", "z_median"), *second.readings.of("net.1", "z_median")]
    assert [event.value for event in scalars] == pytest.approx(wanted)


def test_validation_in_train_mode_is_found_and_printed(tmp_path, capsys):
    module, callback = Module(), ProbeCallback(check=True, writer=False)
    module.on_validation_model_eval = lambda: None
    trainer_of(tmp_path, callback, num_sanity_val_steps=0).fit(module, loader(), loader())
    assert [each.rule for each in callback.diagnosis.findings] == ["SL401"]
    assert "16 of 32 passes that wrote" in " ".join(capsys.readouterr().out.split())


def test_steps_by_hand_of_two_optimizers(tmp_path):
    class Adversaries(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False
            self.maker = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))
            self.critic = net()

        def training_step(self, batch, _index):
            of_maker, of_critic = self.optimizers()
            for optimizer in (of_maker, of_critic):
                made = self.critic(self.maker(batch[0])).square().mean()
                optimizer.zero_grad()
                self.manual_backward(made)
                optimizer.step()

        def configure_optimizers(self):
            parts = (self.maker, self.critic)
            return [torch.optim.SGD(part.parameters(), lr=0.1) for part in parts]

    module, callback = Adversaries(), ProbeCallback(every=2)
    trainer_of(tmp_path, callback, max_epochs=1).fit(module, loader())
    counts = callback.probe.counts
    assert (counts.steps, counts.layers["maker.1"].per_step) == (16, {1: 16})
    assert all(z == z for z in callback.probe.readings.of("maker.1", "z_median"))
    assert hooks(module) == 0


def test_a_module_that_calls_itself_in_steps_by_hand_is_seen_to(tmp_path):
    class ByHand(Module):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False

        def forward(self, x):
            return self.net(x)

        def training_step(self, batch, _index):
            optimizer = self.optimizers()
            optimizer.zero_grad()
            for half in batch[0].chunk(2):
                self.manual_backward(self(half).square().mean())
            optimizer.step()

    module, callback = ByHand(), ProbeCallback(every=1)
    trainer_of(tmp_path, callback, max_epochs=1).fit(module, loader(), loader())
    assert callback.probe.counts.per_step == {2: 8}


def test_a_copy_watches_nothing(tmp_path):
    copies = []
    module = Module(lambda _: copies.append(pickle.loads(pickle.dumps(callback))))  # noqa: S301
    callback = ProbeCallback(every=3)
    module.on_train_start = lambda: (delattr(callback, "log"), delattr(callback, "log_dict"))
    trainer_of(tmp_path, callback, max_epochs=1).fit(module, loader(), loader())
    assert {(copy.probe, copy.every) for copy in copies} == {(None, 3)}


@pytest.mark.filterwarnings("ignore:The number of training batches .* is smaller than the logging")
@pytest.mark.filterwarnings("ignore:Starting from v1.9.0, `tensorboardX` has been removed")
def test_the_example_of_the_page_runs(tmp_path, monkeypatch, capsys):
    run_example("Lightning", tmp_path, monkeypatch)
    assert "Module: " in capsys.readouterr().out
    assert (tmp_path / "lightning.html").stat().st_size > 100_000


SCRIPT = """
from pathlib import Path
import torch
from torch import nn
from torch.utils.data import DataLoader
from spiritlevel.integrations.lightning import ProbeCallback  # before either of them
{imports}

def fit(pl, **options):
    class Module(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
        def training_step(self, batch, _index):
            return self.net(batch).square().mean()
        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)
        def on_fit_end(self):
            probe = callback.probe
            found = probe.counts.steps, probe.counts.per_step, probe.readings.of("net.1", "z_max")
            Path("rank %d" % self.global_rank).write_text(repr(tuple(found)))
    callback = ProbeCallback(every=1, report="probe.html", check=True)
    pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, max_epochs=1,
        enable_progress_bar=False, enable_model_summary=False, callbacks=callback, **options,
    ).fit(Module(), DataLoader(torch.randn(32, 3), batch_size=4))
    return callback.probe

if __name__ == "__main__":
    {run}
"""


def script(folder, imports, run):
    (folder / "script.py").write_text(SCRIPT.format(imports=imports, run=run))
    command = [sys.executable, "script.py"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_both_names_of_the_library_are_served(tmp_path):
    told = script(
        tmp_path,
        "import lightning.pytorch, pytorch_lightning",
        "print([fit(pl).counts.steps for pl in (lightning.pytorch, pytorch_lightning)])",
    )
    assert told.splitlines()[-1] == "[8, 8]"


def test_of_two_processes_each_reads_its_share_and_one_writes(tmp_path):
    told = script(
        tmp_path,
        "import lightning.pytorch as pl",
        "print(fit(pl, devices=2, strategy='ddp_fork'))",
    )
    assert len(re.findall(r"^Module: .* rules asked", told, flags=re.MULTILINE)) == 1
    assert told.splitlines()[-1] == "None"  # the probes were in the other processes
    assert "Module" in (tmp_path / "probe.html").read_text()
    first, second = ((tmp_path / f"rank {rank}").read_text() for rank in (0, 1))
    assert first.startswith("(4, Counter({1: 4}), [")
    assert second.startswith("(4, Counter({1: 4}), [")
    assert first != second
