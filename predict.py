"""Predict with a finished run: load the run → predict batch by batch → write a CSV file and a figure.

python predict.py run=last images='drawn/*.png'
"""

import csv
import itertools
import logging
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from cli.build import load_run
from cli.examples import Examples, ImageFiles, ImagePair, Latents, Rows, Source, Split, find_files
from cli.main import main
from cli.predictions import Comparisons, Numbers, predictions_of
from cli.session import CommandError, call
from cli.validation import check_without_effect
from runs.files import atomic_write, is_within, is_writable, read_yaml, write_png
from runs.run import Predictions, read_predictions

log = logging.getLogger(__name__)


class FilesSkipped(Exception):
    """Some of the files could not be read; the others were predicted."""

    exit_code = 1


def predict(*overrides: str) -> Predictions:
    """Predict from Python what ``python predict.py OVERRIDES`` predicts.

        predict("run=last", "split=test", "limit=6").rows

    Raises:
        CommandError, KeyboardInterrupt: see :func:`call`. Of a run that may be read and not written, ``output=`` must
            name another directory.
    """
    run_dir, table = call(predict_config, overrides, "predict")
    if table is None:
        raise CommandError(f"{os.path.relpath(run_dir)} cannot be written; output= names another directory")
    return read_predictions(table)


def predict_config(cfg: DictConfig, run_dir: Path) -> Path | None:
    """Predict what ``cfg`` names; write ``predictions.csv`` and, for images, ``predictions.png`` to ``cfg.output``.

    Returns:
        The path of ``predictions.csv``. In a run that may be read and not written it is not kept, and a line says so.
    """
    if empty := next((name for name in ("images", "csv", "split") if cfg[name] == ""), None):
        raise ValueError(f"{empty}= names nothing")
    if [cfg.images, cfg.csv, cfg.split, cfg.samples].count(None) != 3:
        raise ValueError("exactly one of images='some/*.png', csv=rows.csv, split=test and samples=64 is required")
    if not cfg.split:
        check_without_effect("limit", "split=test")
    files = find_files(cfg.images) if cfg.images else [Path(str(cfg.csv))] if cfg.csv else []
    table, picture = (run_dir / cfg.output / name for name in ("predictions.csv", "predictions.png"))
    replaces = _check_not_overwritten(files, table, picture, cfg, run_dir)
    _, datamodule, model = load_run(cfg.run, cfg.checkpoint, cfg.get("data"))
    predictions = predictions_of(datamodule, model, samples=cfg.samples is not None)
    source = _source(cfg, files, datamodule, model, predictions)

    import torch

    from plots.figure import to_pixels

    if is_within(table, run_dir) and not is_writable(table.parent):
        with torch.inference_mode(), tempfile.TemporaryDirectory() as folder:
            _write_table(Path(folder, table.name), source, predictions)
        place = os.path.relpath(table.parent)
        log.warning("%s cannot be written, so the predictions are not kept; output= names another directory", place)
        return None
    with torch.inference_mode():
        shown, count = _write_table(table, source, predictions, replaces)
        title = f"the first {len(shown.names)} of {count:,}" if count > len(shown.names) else ""
        figure = predictions.figure(shown, predictions.predict(shown.inputs), title)
    if figure:
        write_png(picture, to_pixels(figure), replaces)
    log.info("written to %s", " and ".join(os.path.relpath(path) for path in ([table, picture] if figure else [table])))
    if skipped := source.skipped:
        more = f" and {len(skipped) - 10:,} more" if len(skipped) > 10 else ""
        raise FilesSkipped(f"{len(skipped):,} of {len(files):,} files skipped: {', '.join(skipped[:10])}{more}")
    return table


def _source(cfg: DictConfig, files: list[Path], datamodule: Any, model: Any, predictions: Numbers) -> Source:
    if cfg.images:
        return (ImagePair if isinstance(predictions, Comparisons) else ImageFiles)(files, datamodule)
    if cfg.csv:
        return Rows(files[0], datamodule)
    return Split(cfg.split, cfg.limit, datamodule) if cfg.split else Latents(cfg.samples, model)


def _check_not_overwritten(files: Iterable[Path], table: Path, picture: Path, cfg: DictConfig, run_dir: Path) -> bool:
    """Return whether earlier predictions may be replaced, which is so in ``predictions/`` of a run only.

    Elsewhere nothing tells them from files that the user has made or changed.

    Raises:
        ValueError: such files are in the way, or files that are to be read; or a link that may have come with the run.
    """
    if run_dir in Path(os.path.normpath(table)).parents and not is_within(table, run_dir):
        raise ValueError(f"output={cfg.output} is refused: it leads through a link out of {os.path.relpath(run_dir)}")
    existing = [path for path in (table, picture) if os.path.lexists(path)]
    run = read_yaml(table.parent.parent / "config.yaml")
    replaces = cfg.output == "predictions" and run.keys() >= {"choices", "model", "data", "trainer"}
    if existing and not replaces:
        raise ValueError(f"output={cfg.output} would overwrite {existing[0]}: move it, or choose another directory")
    for file in files if existing else ():
        if file.exists() and any(path.exists() and file.samefile(path) for path in existing):
            raise ValueError(f"output={cfg.output} would overwrite {file}, which is to be read")
    return replaces


def _write_table(path: Path, source: Source, predictions: Numbers, overwrite: bool = True) -> tuple[Examples, int]:
    """Write a row for each example. Return the examples that are printed and drawn, and the number of all."""
    from tqdm import tqdm

    batches = iter(source)
    first = next(batches)  # before anything is written
    shown = first.head(predictions.max_shown)
    count = 0
    with (
        atomic_write(path, overwrite) as temporary,
        open(temporary, "w", newline="", encoding="utf-8") as file,
        tqdm(total=source.total, desc="predicting", delay=1, leave=False, disable=None) as progress,
    ):
        for examples in itertools.chain([first], batches):
            rows = predictions.rows(examples, predictions.predict(examples.inputs))
            writer = csv.DictWriter(file, rows[0])
            if not count:
                writer.writeheader()
                for line in filter(None, map(predictions.format, rows[: len(shown.names)])):
                    log.info("  %s", line)
            writer.writerows(rows)
            count += len(rows)
            progress.update(len(rows))
    if count > len(shown.names) and predictions.format(rows[0]):
        log.info("  … and %s more", f"{count - len(shown.names):,}")
    return shown, count


if __name__ == "__main__":
    main(predict_config, "predict")
