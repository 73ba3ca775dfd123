"""Predict with a finished run: load the run → read the inputs → predict → write a CSV file and a figure.

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
from runs.files import atomic_write, write_png
from runs.format import check_positive_int, printable

log = logging.getLogger(__name__)

MAX_IMAGES = 48  # in predictions.png


class FilesSkipped(Exception):
    """Some of the files could not be read; the others were predicted."""

    exit_code = 1


def predict(cfg: DictConfig, run_dir: Path) -> list[dict[str, Any]]:
    """Predict what ``cfg`` names; write ``predictions.csv`` and, for images, ``predictions.png`` to ``cfg.output``."""
    if [cfg.images, cfg.csv, cfg.split].count(None) != 2:
        raise ValueError("exactly one of images='some/*.png', csv=rows.csv and split=test is required")
    files = _find_files(cfg.images) if cfg.images else []
    output = run_dir / cfg.output
    for file in [*files, *([Path(str(cfg.csv))] if cfg.csv else [])]:
        if file.resolve() in ((output / name).resolve() for name in ("predictions.csv", "predictions.png")):
            raise ValueError(f"output={cfg.output} would overwrite {file}, which is to be read")
    _, datamodule, model = load_run(cfg.run, cfg.checkpoint)

    import torch

    from plots.figure import to_pixels
    from plots.images import predictions

    skipped: list[str] = []
    targets: list[Any] = []
    if cfg.images:
        names, inputs, skipped = _read_images(files, datamodule)
    elif cfg.csv:
        names, inputs = _read_rows(Path(str(cfg.csv)), datamodule)
    else:
        names, inputs, targets = _read_split(cfg.split, cfg.limit, datamodule)

    with torch.inference_mode():
        outputs = datamodule.denormalize_targets(model(datamodule.normalize(inputs)))
    rows = _rows(names, outputs, targets, model, datamodule.class_names)
    written = [output / "predictions.csv"]
    _write_csv(written[0], rows)
    for row in rows:
        log.info("  %s", _format_row(row))
    if hasattr(datamodule, "load_image"):
        written.append(output / "predictions.png")
        shown = slice(MAX_IMAGES)
        captions = [Path(name).name for name in names[shown]]
        true_classes = torch.tensor(targets[shown]) if targets else None
        probs = model.probabilities(outputs[shown])
        figure = predictions(inputs[shown], probs, true_classes, datamodule.class_names, captions=captions)
        write_png(written[-1], to_pixels(figure))
    log.info("written to %s", " and ".join(os.path.relpath(path) for path in written))
    if skipped:
        raise FilesSkipped(f"{len(skipped)} of {len(files)} files skipped: {', '.join(skipped)}")
    return rows


def _find_files(pattern: Any) -> list[Path]:
    if isinstance(pattern, ListConfig):  # images='[a.png,b.png]'
        return [file for one in pattern for file in _find_files(one)]
    path = Path(pattern := str(pattern))
    if path.is_file():  # a name with brackets is not a pattern then
        return [path]
    found = path.iterdir() if path.is_dir() else map(Path, glob.glob(pattern, recursive=True))
    files = sorted(file for file in found if file.is_file())
    if not files:
        raise FileNotFoundError(f"images={pattern}: there is no such file")
    return files


def _read_images(files: list[Path], datamodule: Any) -> tuple[list[str], Any, list[str]]:
    import torch

    if not hasattr(datamodule, "load_image"):
        other = "try csv=" if len(datamodule.shape) == 1 else "split=test predicts its own test set"
        raise ValueError(
            f"this run was trained on inputs of shape {tuple(datamodule.shape)}, not on image files; {other}"
        )
    names, images, skipped = [], [], []
    for file in files:
        try:
            image, notes = datamodule.load_image(file)
        except ValueError as error:
            log.warning("skipped: %s", error)
            skipped.append(printable(str(file)))
            continue
        names.append(printable(str(file)))
        images.append(image)
        if notes:
            log.info("%s: %s", names[-1], ", ".join(notes))
    if not images:
        raise ValueError(f"none of the {len(files)} files is an image")
    return names, torch.stack(images), skipped


def _read_rows(file: Path, datamodule: Any) -> tuple[list[str], Any]:
    if len(datamodule.shape) != 1:
        other = "try images=" if hasattr(datamodule, "load_image") else "split=test predicts its own test set"
        raise ValueError(f"this run was trained on inputs of shape {tuple(datamodule.shape)}, not on rows; {other}")
    return datamodule.read_rows(file)


def _read_split(split: str, limit: int, datamodule: Any) -> tuple[list[str], Any, list[Any]]:
    import torch

    if split != "test":
        raise ValueError(f"split={split} must be test")
    check_positive_int("limit", limit)
    datamodule.setup()
    loader, batches, seen = datamodule.test_dataloader(), [], 0
    if not len(loader):
        raise ValueError("split=test: this run has no test set")
    loader.normalize = None  # serve the inputs as they are stored
    for inputs, targets in loader:  # reads no more image files than needed
        batches.append((inputs, targets))
        seen += len(targets)
        if seen >= limit:
            break
    inputs, targets = (torch.cat(part)[:limit] for part in zip(*batches, strict=True))
    names = [f"test[{number}]" for number in range(len(inputs))]
    return names, inputs, [target.squeeze().tolist() for target in datamodule.denormalize_targets(targets)]


def _rows(
    names: list[str], outputs: Any, targets: list[Any], model: Any, class_names: tuple[str, ...]
) -> list[dict[str, Any]]:
    """Return the rows of predictions.csv."""
    if not class_names:
        rows = [
            {"input": name, "prediction": output.squeeze().tolist()}
            for name, output in zip(names, outputs, strict=True)
        ]
        return [row | {"truth": target} for row, target in zip(rows, targets, strict=True)] if targets else rows
    rows = []
    for index, (name, probs) in enumerate(zip(names, model.probabilities(outputs), strict=True)):
        top = probs.topk(min(3, len(probs)))
        best = [
            f"{class_names[label]} {prob:.4f}"
            for prob, label in zip(top.values.tolist(), top.indices.tolist(), strict=True)
        ]
        row = {"input": name, "label": class_names[top.indices[0]], "probability": round(top.values[0].item(), 6)}
        row["top 3"] = "; ".join(best)
        if targets:
            row["truth"] = class_names[targets[index]]
        rows.append(row)
    return rows


def _write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    with atomic_write(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def _format_row(row: dict[str, Any]) -> str:
    """Return a row of predictions.csv as it is printed."""
    target = f"  true: {_format_value(row['truth'])}" if "truth" in row else ""
    return f"{row['input']}  {row['top 3'] if 'top 3' in row else _format_value(row['prediction'])}{target}"


def _format_value(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(map(_format_value, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main(predict, "predict")
