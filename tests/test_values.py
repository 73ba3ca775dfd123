"""Values of settings are checked before a run makes anything on the disk."""

import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import hydra
import pytest
from omegaconf import DictConfig, OmegaConf

import train
from cli import CONF, GROUPS
from cli.compose import compose, register_resolvers
from cli.errors import format_error
from cli.validation import _expected, check_overrides, check_values
from runs.result import read_result

TINY = ("data=blobs", "model=blobs_mlp", "model.steps_per_batch=2", "trainer.max_epochs=2")
QUIET = ("logger=none", "callbacks.progress=null", "callbacks.pictures=null")
ONE_BATCH = "of 1 batch is none; 1 takes one"

REFUSED = {
    "expect=5": "expect=5 must be a mapping of metrics, such as {test/acc:{at_least:0.9}}, or null",
    "expect=[1]": "expect=[1] must be a mapping of metrics",
    "expect={w:5}": "expect.w=5 must be a mapping with some of at_least, at_most, published, rtol, atol, epochs",
    "expect={w:{at_least:5,if_measured:2}}": "expect.w.if_measured=2 must be true or false",
    "expect={w:{at_leest:5}}": "expect.w={'at_leest': 5} must be a mapping with some of at_least",
    "expect={w:{at_least:x}}": "expect.w.at_least=x must be a number",
    "expect={w:{at_least:null}}": "expect.w.at_least=null must be a number",
    "expect={w:{published:[1,x]}}": "expect.w.published=[1, 'x'] must be a number",
    "expect={w:{published:[]}}": "expect.w.published=[] must be a number",
    "expect={w:{rtol:0.1}}": "expect.w: rtol and atol are a tolerance around published, which is missing",
    "ignore_overrides=[1]": "ignore_overrides=[1] must be a list of settings",
    "ignore_groups=[1]": "ignore_overrides=[1] must be a list of settings",
    "may_change=null": "ignore_overrides=null must be a list",
    "name=null": "name=null must be a string",
    "name=true": "name=True must be a string",
    "trainer.max_steps=0": "trainer.max_steps=0 leaves nothing to train",
    "trainer.max_epochs=0": "trainer.max_epochs=0 leaves nothing to train",
    "trainer.max_steps=null": "trainer.max_steps=null must be a whole number, such as -1",
    "+trainer.enable_checkpointing=false": "trainer.enable_checkpointing=false must be left out: a run always keeps",
    "trainer.max_time=00:00:00:00": "trainer.max_time=00:00:00:00 must be a time, DD:HH:MM:SS",
    "++trainer.max_time=5": "trainer.max_time=5 must be a time, DD:HH:MM:SS",
    "++trainer.max_epochs=abc": "trainer.max_epochs=abc must be a whole number",
    "trainer.limit_train_batches=0": "trainer.limit_train_batches=0 leaves nothing to train on",
    "trainer.limit_train_batches=0.001": f"trainer.limit_train_batches=0.001 {ONE_BATCH}",
    "trainer.limit_test_batches=0.001": f"trainer.limit_test_batches=0.001 {ONE_BATCH}",
    "trainer.limit_val_batches=0.001 data.val_size=9": f"trainer.limit_val_batches=0.001 {ONE_BATCH}",
    "trainer.limit_train_batches=true": "trainer.limit_train_batches=True must be a number of batches, or a part",
    "trainer.limit_test_batches=-1": "trainer.limit_test_batches=-1 must be a number of batches",
    "+trainer.overfit_batches=x": "trainer.overfit_batches=x must be a number of batches",
    "trainer.gradient_clip_val=-1": "trainer.gradient_clip_val=-1 must be a number of at least 0, or null",
    "trainer.deterministic=maybe": "trainer.deterministic=maybe must be one of null, true, false, warn",
    "trainer.devices=null": "trainer.devices=null must be a number of devices, or auto",
    "callbacks=early_stopping callbacks.early_stopping.patience=null": "patience=null must be a whole number",
    "+callbacks.stop.patience=3": "callbacks.stop must have a _target_, such as lightning.pytorch.callbacks.",
    "+callbacks.stop=3": "callbacks.stop must have a _target_, such as lightning.pytorch.callbacks.",
    "callbacks.per_class._target_=null": "callbacks.per_class._target_=null must be a string",
    "scheduler.pct_start=2": "OneCycleLR: Expected float between 0 and 1 pct_start, but got 2 (scheduler=)",
    "scheduler=step scheduler.step_size=0": "scheduler.step_size=0 must be a whole number of at least 1",
    "scheduler=onecycle scheduler.cycle_momentum=true optimizer=by_hand": "OneCycleLR: optimizer must support momentum",
    "optimizer.betas=[5,5]": "AdamW: Invalid beta parameter at index 0: 5 (optimizer=)",
    "optimizer.betas=[0.9]": "AdamW: list index out of range (optimizer=)",
    "optimizer=adadelta optimizer.rho=2": "Adadelta: Invalid rho value: 2 (optimizer=)",
    "checkpoint={tested:x}": "checkpoint.tested=x must be one of last, best",
    "++checkpoint={every_n_steps:0}": "checkpoint.every_n_steps=0 must be a whole number of at least 1",
    "record={every_n_batches:-1}": "record.every_n_batches=-1 must be a whole number of at least 1",
    "model.net={hidden_sizes:null}": "model.net.hidden_sizes=null must be a list",
    "+logger.x={api_key:y}": "logger.x.api_key=… would be stored with the run",
    "+logger.x={y:{uri:'http://a:b@host'}}": "logger.x=… has a user or a password in it",
}


def check_and_train(*overrides: str) -> None:
    cfg = compose(*TINY, *QUIET, *overrides)
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        check_overrides(cfg)
    os.mkdir("run")
    train.train_config(cfg, Path("run"))


@pytest.mark.parametrize("words", REFUSED)
def test_wrong_value_is_refused_before_anything_is_made(words: str) -> None:
    with pytest.raises(Exception) as error:
        check_and_train(*words.split())
    assert REFUSED[words] in (line := format_error(error.value))
    assert ".py, line" not in line
    assert not Path("run").exists() or os.listdir("run") == []
    assert not Path("outputs").exists()


@pytest.mark.parametrize(
    "words",
    [
        "name=1",
        "metrics=classes metrics.f1=null",
        "trainer.max_epochs=null trainer.max_steps=4",
        "expect={test/acc:{at_least:0}}",
        "callbacks.per_class=null",
        "+scheduler.anneal_strategy=linear",
        "optimizer=muon scheduler=linear",
        "trainer.limit_val_batches=0.001",  # no validation here
    ],
)
def test_values_with_a_meaning_are_accepted(words: str) -> None:
    check_and_train(*words.split())
    result = read_result(Path("run"))
    assert result and result["status"] == "finished"


# All settings whose value in conf/ is not null and that may be null: all at once, nothing to undo, torch's and
# Lightning's own values, and parts that are left out.
MAY_BE_NULL = {
    "data.batch_size",
    "data.eval_batch_size",
    "model.mean",
    "model.std",
    "optimizer.fused",
    "optimizer.line_search_fn",
    *(f"trainer.{name}" for name in ("max_epochs", "check_val_every_n_epoch", "log_every_n_steps", "benchmark")),
    *(f"trainer.{name}" for name in ("num_sanity_val_steps", "enable_model_summary", "profiler")),
    *(f"trainer.limit_{stage}_batches" for stage in ("train", "val", "test")),
    *(f"callbacks.{file.stem}" for file in CONF.glob("callbacks/*.yaml") if file.stem != "default"),
    *("callbacks.progress", "callbacks.per_class", "callbacks.pictures", "callbacks.batch_gradient_verification"),
    *("metrics.f1", "metrics.f1.average", "metrics.auroc", "metrics.auroc.average", "metrics.ece"),
    *("metrics.ece.n_bins", "metrics.rmse", "metrics.rmse.squared", "metrics.r2"),
}
CHOSEN_BY_WORDS = ("trainer.accelerator", "trainer.precision")  # of a list that null is not in


def settings_of(config: DictConfig, prefix: str = "") -> Iterator[tuple[str, object]]:
    for name in config:
        key = f"{prefix}{name}"
        if OmegaConf.is_missing(config, str(name)):
            continue  # it is required, and null is refused
        try:
            value = config[name]
        except Exception:
            continue  # it is the value of one that is missing
        yield key, value
        if OmegaConf.is_dict(value):
            yield from settings_of(value, f"{key}.")


def test_null_is_refused_for_every_setting_where_it_means_nothing() -> None:
    register_resolvers()
    found = set()
    groups = [group for group in GROUPS if group not in ("experiment", "sweep")]  # which set what the others have
    options = [[f"{group}={file.stem}" for file in sorted((CONF / group).glob("*.yaml"))] for group in groups]
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        for together in itertools.zip_longest(*options):  # one option of each group
            cfg = hydra.compose("config", [option for option in together if option])
            found |= {
                key
                for key, value in settings_of(cfg)
                if value is not None and not key.startswith("expect.") and not _expected(key, None, value)
            }
    found -= {f"logger.{file.stem}" for file in (CONF / "logger").glob("*.yaml")}  # null takes one out
    assert found - {*MAY_BE_NULL, *CHOSEN_BY_WORDS, *GROUPS} == set()  # Hydra refuses null for a group


@pytest.mark.parametrize(
    ("command", "override"),
    [
        ("evaluate", "split=null"),
        ("evaluate", "checkpoint=null"),
        ("evaluate", "epsilons=null"),
        ("evaluate", "epsilons=0.1"),
        ("evaluate", "trainer.devices=null"),
        ("evaluate", "trainer.accelerator=null"),
        ("evaluate", "run=null"),
        ("predict", "limit=null"),
        ("predict", "limit=six"),
        ("predict", "output=null"),
        ("export", "output=null"),
    ],
)
def test_commands_refuse_null_and_other_types(command: str, override: str) -> None:
    from hydra.core.hydra_config import HydraConfig

    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = hydra.compose(command, [override], return_hydra_config=True)
        HydraConfig.instance().set_config(cfg)
        with pytest.raises(ValueError, match=rf"^{override.partition('=')[0]}=\S+ (must be|is required)"):
            check_values(cfg, command)


def test_command_refuses_null_in_one_line(shell: Callable, tmp_path: Path) -> None:
    answer = shell("run=nowhere", "limit=null", script="predict.py")
    assert answer.returncode == 1
    assert len(answer.stderr.splitlines()) == 1
    assert os.listdir(tmp_path) == []


def test_overfitting_sees_the_same_batches_in_every_epoch(random_images: Callable, monkeypatch) -> None:
    from lit_models import Classifier

    random_images(200, 50)
    seen: list[list[int]] = []
    training_step = Classifier.training_step

    def watched(self: Classifier, batch: list, batch_idx: int) -> object:
        seen.append(batch[1].tolist())
        return training_step(self, batch, batch_idx)

    monkeypatch.setattr(Classifier, "training_step", watched)
    cfg = compose("model=mlp", "data.val_size=40", "trainer.max_epochs=3", "+trainer.overfit_batches=2", *QUIET)
    os.mkdir("run")
    train.train_config(cfg, Path("run"))
    assert len(seen) == 6
    assert seen[:2] == seen[2:4] == seen[4:]
