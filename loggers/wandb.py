"""Runs in Weights & Biases."""

import configparser
import contextlib
import hashlib
import logging
import os
import re
import secrets
from pathlib import Path
from typing import Any

os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # read when wandb is imported; offline it sends reports too
import numpy as np
import wandb
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from loggers.guarded import Guarded, check_no_link, check_place, first_line, is_resumed, read_run_id, write_run_id
from runs.files import make_dirs
from runs.result import ENDED

log = logging.getLogger(__name__)

DEFAULT_PROJECT = "lit-classics"  # of conf/logger/wandb.yaml


class WandB(Guarded, WandbLogger):
    """Records settings, metrics, tags, pictures and the result of a run in Weights & Biases.

    ``wandb.txt`` in the run directory holds the id of the run and its project, so that a resumed run continues it. A
    run may come from anyone: a project other than the default must be given again, and an id is used only in the
    directory that it was made for, whose name is hashed into it.

    Args:
        save_dir: run directory. The files of wandb are in ``outputs/wandb``: among them are links, which in a run
            directory are refused.
        mode: online, offline or disabled. None takes the environment variable ``WANDB_MODE``, or online.
        **options: further arguments of ``wandb.init``, such as ``project``, ``name``, ``group`` and ``entity``.
    """

    title = "Weights & Biases"

    def __init__(self, save_dir: str, mode: str | None = None, **options: Any) -> None:
        self._file = Path(save_dir, "wandb.txt")
        stored = read_run_id(self._file)
        self._place = f"{options.get('entity') or 'the default entity'}, project {options.get('project')}"
        if len(stored) > 1:
            is_default = options.get("project") == DEFAULT_PROJECT and not options.get("entity")
            check_place(stored[1], self._place, is_default, "W&B", "logger.wandb.project=… logger.wandb.entity")
        is_id = bool(stored and re.fullmatch(r"[0-9a-f]{16}", stored[0]))  # it becomes part of a directory's name
        self.is_continued = is_id and stored[0] == self._id_here(stored[0][:8])
        if is_resumed(save_dir) and not self.is_continued:
            log.info("%s does not name a W&B run of this directory to continue: one begins", self._file)
        self._run_id = stored[0] if self.is_continued else self._id_here(secrets.token_hex(4))
        mode = mode or os.environ.get("WANDB_MODE")
        # What is printed belongs to train.log, and wandb would wrap the streams.
        # Git obeys the .git/config of the working directory, which may have come with an untrusted run.
        settings = wandb.Settings(console="off", quiet=True, disable_git=True)
        self._options = {"dir": "outputs", "id": self._run_id, "mode": mode, "settings": settings, **options}
        self._options["reinit"] = "finish_previous"  # that of an earlier job of this process
        self._is_online = mode in (None, "online")
        super().__init__(save_dir="outputs", id=self._run_id)

    def _id_here(self, prefix: str) -> str:
        """Return the id with these eight characters for a run in this directory."""
        directory = f"{prefix} {os.path.abspath(self._file.parent)}"
        return prefix + hashlib.blake2b(directory.encode(errors="surrogateescape"), digest_size=4).hexdigest()

    def begin(self) -> None:
        """Begin the run in W&B, or find the one to continue.

        Raises:
            ValueError: there is no key, or W&B cannot be used.
        """
        _check_files()
        made = make_dirs(Path("outputs"))  # else wandb takes the directory for temporary files
        try:
            run = self._find_run() if self.is_continued and self._is_online else None
            run = run or wandb.init(resume="allow", **self._options)
        except (wandb.Error, OSError, ValueError) as error:
            for directory in made:
                with contextlib.suppress(OSError):  # it is in use by now
                    directory.rmdir()
            hint = "wandb login or WANDB_API_KEY gives a key, logger.wandb.mode=offline needs none"
            raise ValueError(f"logger=wandb: {first_line(error)}; {hint}") from error
        # As Lightning does for a run that it begins itself, of which wandb warns.
        run.define_metric("trainer/global_step")
        run.define_metric("*", step_metric="trainer/global_step", step_sync=True)
        super().__init__(save_dir="outputs", id=self._run_id, experiment=run)

    def abandon(self) -> None:
        self.experiment.finish(exit_code=1)

    def _find_run(self) -> Any:
        """Return the run to continue, or None where W&B does not have it."""
        try:
            return wandb.init(resume="must", **self._options)
        except wandb.errors.UsageError as error:
            if "resume" not in str(error):
                raise
            log.warning("W&B has no run %s: another one begins", self._run_id)
            return None

    def log_config(self, config: dict[str, Any], text: str) -> None:
        self._guard(lambda: self._log_config(config))

    def _log_config(self, config: dict[str, Any]) -> None:
        write_run_id(self._file, self._run_id, self._place)
        choices = config["choices"]
        own = [choices[name] for name in ("experiment", "model", "data") if choices[name]]
        self.experiment.tags = tuple(dict.fromkeys([*own, *(config.get("tags") or [])]))
        self.log_hyperparams(_without_artifacts(config))

    @rank_zero_only
    def log_plot(self, name: str, pixels: np.ndarray, step: int) -> None:
        """Add a plot, uint8 ``(H, W, 3)``."""
        self._guard(lambda: self.experiment.log({name: wandb.Image(pixels), "trainer/global_step": step}))

    @rank_zero_only
    def log_end(self, result: dict[str, Any], settings: dict[str, Any]) -> None:
        """Record the result, and end the run in W&B."""
        self._guard(lambda: self._log_end(result))
        with contextlib.suppress(Exception):  # what cannot be sent is in outputs/wandb
            self.experiment.finish(exit_code=int(result["status"] not in ENDED))

    def _log_end(self, result: dict[str, Any]) -> None:
        metrics = {name: value for name, value in result["metrics"].items() if value is not None}
        facts = ("status", "epochs", "steps", "params", "seconds", "command", "git")
        self.experiment.summary.update(metrics | {name: result[name] for name in facts if name in result})

    def finalize(self, status: str) -> None:
        pass  # after the training, before the test; log_end() ends the run


def _without_artifacts(value: Any) -> Any:
    """Return a config in which wandb sees no artifact.

    It would fetch one from the server that its address names, which would get the user's key. The config may come from
    a run of anyone.
    """
    if isinstance(value, dict):
        return {name: _without_artifacts(one) for name, one in value.items() if name != "_type"}
    if isinstance(value, (list, tuple)):
        return [_without_artifacts(one) for one in value]
    return f" {value}" if isinstance(value, str) and value.startswith("wandb-") else value


def _check_files() -> None:
    """Raise ValueError for links among the files of wandb, and for settings that could name a server.

    That server would get the user's key. The working directory may be that of an untrusted run, and wandb reads the
    files in any case.
    """
    if os.path.lexists("config-defaults.yaml"):  # which may be a link to a private file
        raise ValueError(
            "logger=wandb: wandb would send the values of config-defaults.yaml in this directory; rename it"
        )
    for folder in (Path(parent, name) for parent in (".", "outputs") for name in ("wandb", ".wandb")):
        check_no_link(folder)
        if (folder / "settings").exists() and not _is_harmless(folder / "settings"):
            raise ValueError(
                f"logger=wandb: {folder / 'settings'} in this directory could send your key elsewhere: use "
                "WANDB_BASE_URL=… instead"
            )


def _is_harmless(file: Path) -> bool:
    """Return whether a file of settings says no more than what ``wandb offline`` and ``wandb init`` write."""
    settings = configparser.ConfigParser(interpolation=None)
    with contextlib.suppress(OSError, ValueError, configparser.Error):
        settings.read_string(file.read_text(encoding="utf-8"))
        return settings.sections() == ["default"] and set(settings["default"]) <= {"mode", "disabled", "project"}
    return False
