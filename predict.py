"""Ask a finished run: rebuild → read → predict → write a CSV file and a picture.

python predict.py run=last images='drawn/*.png'
"""

import csv
import glob
import logging
import os
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig

from cli.build import load_run
from cli.main import main
from runs.files import atomic_write

log = logging.getLogger(__name__)

MOST = 48  # in one picture


class SomeSkipped(Exception):
    """Some of the files could not be read; the others were predicted."""

    exit_code = 1


def predict(cfg: DictConfig, run_dir: Path) -> list[dict[str, Any]]:
    """Predict what ``cfg`` names; write ``predictions.csv`` and, for images, ``predictions.png`` to ``cfg.output``."""
    if [cfg.images, cfg.csv, cfg.split].count(None) != 2:
        raise ValueError("say what to predict: images='some/*.png', or csv=rows.csv, or split=test")
    files = _files(cfg.images) if cfg.images else []
    _, datamodule, model = load_run(cfg.run, cfg.checkpoint)

    import torch

    skipped: list[str] = []
    truths: list[Any] = []
    if cfg.images:
        names, examples, skipped = _read_pictures(files, datamodule)
    elif cfg.csv:
        names, examples = _read_rows(Path(str(cfg.csv)), datamodule)
    else:
        names, examples, truths = _read_split(cfg.split, cfg.limit, datamodule)

    with torch.inference_mode():
        outputs = datamodule.denormalize_targets(model(datamodule.normalize(examples)))
    rows = _rows(names, outputs, truths, model, datamodule.class_names)
    output = run_dir / cfg.output
    with (
        atomic_write(output / "predictions.csv") as temporary,
        open(temporary, "w", newline="", encoding="utf-8") as out,
    ):
        writer = csv.DictWriter(out, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    for row in rows:
        log.info("  %s", _line(row))
    written = [output / "predictions.csv"]
    if hasattr(datamodule, "load_image"):
        from plots import charts

        written.append(output / "predictions.png")
        shares, targets = model.probabilities(outputs[:MOST]), torch.tensor(truths[:MOST]) if truths else None
        captions = [Path(name).name for name in names[:MOST]]
        figure = charts.predictions(examples[:MOST], shares, targets, datamodule.class_names, captions=captions)
        charts.save(figure, written[-1])
    log.info("written to %s", " and ".join(os.path.relpath(path) for path in written))
    if skipped:
        raise SomeSkipped(f"{len(skipped)} of {len(files)} files skipped: {', '.join(skipped)}")
    return rows


def _files(pattern: Any) -> list[Path]:
    if isinstance(pattern, ListConfig):  # images='[a.png,b.png]'
        return [file for one in pattern for file in _files(one)]
    path = Path(pattern := str(pattern))
    if path.is_file():  # whatever its name: brackets mean something in a pattern
        return [path]
    found = path.iterdir() if path.is_dir() else map(Path, glob.glob(pattern, recursive=True))
    files = sorted(file for file in found if file.is_file())
    if not files:
        raise FileNotFoundError(f"images={pattern}: there is no such file")
    return files


def _read_pictures(files: list[Path], datamodule: Any) -> tuple[list[str], Any, list[str]]:
    import torch

    from datamodules.names import printable

    if not hasattr(datamodule, "load_image"):
        other = "try csv=" if len(datamodule.shape) == 1 else "split=test asks it about its own examples"
        raise ValueError(
            f"this run was trained on inputs of shape {tuple(datamodule.shape)}, not on picture files; {other}"
        )
    names, pictures, skipped = [], [], []
    for file in files:
        try:
            picture, notes = datamodule.load_image(file)
        except ValueError as error:
            log.warning("skipped: %s", error)
            skipped.append(printable(str(file)))
            continue
        names.append(printable(str(file)))
        pictures.append(picture)
        if notes:
            log.info("%s: %s", names[-1], ", ".join(notes))
    if not pictures:
        raise ValueError(f"none of the {len(files)} files is an image")
    return names, torch.stack(pictures), skipped


def _read_rows(file: Path, datamodule: Any) -> tuple[list[str], Any]:
    if len(datamodule.shape) != 1:
        other = "try images=" if hasattr(datamodule, "load_image") else "split=test asks it about its own examples"
        raise ValueError(f"this run was trained on inputs of shape {tuple(datamodule.shape)}, not on rows; {other}")
    return datamodule.read_rows(file)


def _read_split(split: str, limit: int, datamodule: Any) -> tuple[list[str], Any, list[Any]]:
    import torch

    if split != "test":
        raise ValueError(f"split={split} must be test")
    if not isinstance(limit, int) or limit < 1:
        raise ValueError(f"limit={limit} must be a whole number of at least 1")
    datamodule.setup()
    loader, batches, seen = datamodule.test_dataloader(), [], 0
    if not len(loader):
        raise ValueError("split=test: this run has no test set")
    loader.normalize = None  # as they are stored
    for inputs, targets in loader:  # of a folder of images no more are read than are asked for
        batches.append((inputs, targets))
        seen += len(targets)
        if seen >= limit:
            break
    inputs, targets = (torch.cat(part)[:limit] for part in zip(*batches, strict=True))
    names = [f"test[{number}]" for number in range(len(inputs))]
    return names, inputs, [target.squeeze().tolist() for target in datamodule.denormalize_targets(targets)]


def _rows(
    names: list[str], outputs: Any, truths: list[Any], model: Any, classes: tuple[str, ...]
) -> list[dict[str, Any]]:
    if not classes:
        rows = [
            {"input": name, "prediction": output.squeeze().tolist()}
            for name, output in zip(names, outputs, strict=True)
        ]
        return [row | {"truth": truth} for row, truth in zip(rows, truths, strict=True)] if truths else rows
    rows = []
    for number, (name, shares) in enumerate(zip(names, model.probabilities(outputs), strict=True)):
        top = shares.topk(min(3, len(shares)))
        best = [
            f"{classes[index]} {share:.4f}"
            for share, index in zip(top.values.tolist(), top.indices.tolist(), strict=True)
        ]
        row = {"input": name, "label": classes[top.indices[0]], "probability": round(top.values[0].item(), 6)}
        row["top 3"] = "; ".join(best)
        if truths:
            row["truth"] = classes[truths[number]]
        rows.append(row)
    return rows


def _line(row: dict[str, Any]) -> str:
    """What is printed of a row of the CSV file."""
    truth = f"  is {_readable(row['truth'])}" if "truth" in row else ""
    if "top 3" in row:
        return f"{row['input']}  {row['top 3']}{truth}"
    return f"{row['input']}  {_readable(row['prediction'])}{truth}"


def _readable(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(map(_readable, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main(predict, "predict")
