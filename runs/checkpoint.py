"""Checkpoints on disk: find one, and read it without running any code."""

import os
import zipfile
from collections import Counter, OrderedDict
from pathlib import Path
from typing import Any

from runs.files import check_folder, check_last, is_within
from runs.format import one_line
from runs.migrate import upgrade_checkpoint
from runs.safety import check_safe, check_words

# Groups that a checkpoint fixes: its weights and optimizer state fit no other choice.
CHECKPOINT_GROUPS = ("model", "data", "optimizer", "scheduler")
# Settings of the data that may change on resume: where it is and how it is loaded, but not how it is split.
MUTABLE_DATA_KEYS = [
    f"data.{name}" for name in ("root", "path", "test_path", "batch_size", "eval_batch_size", "num_workers", "augment")
]


# The run that is ``last`` for a command and the processes that it starts, in their environment.
LAST_RUN = "LIT_CLASSICS_LAST_RUN"


def keep_last_run() -> None:
    """Let ``last`` be for the rest of this command the run that it is now. A training that starts moves the link."""
    link = _last_run()
    os.environ.setdefault(LAST_RUN, os.path.realpath(link) if link.is_dir() else os.path.abspath(link))


def find_checkpoint(run: str, checkpoint: str = "last") -> tuple[Path, Path]:
    """Return the directory of a run and one of its checkpoint files.

    Args:
        run: ``last``, the directory of a run, or a checkpoint file.
        checkpoint: ``last`` or ``best``, where ``run`` is not a file.

    Raises:
        ValueError, FileNotFoundError: it is not a run, the run has no such checkpoint, or its directory is refused.
    """
    run = str(run)  # a directory's name may look like a number
    if "://" in run:
        raise ValueError(f"{run} is not a file on this machine; checkpoints are read from files only")
    if checkpoint not in ("last", "best"):
        raise ValueError(f"checkpoint={checkpoint} must be last or best")
    given = Path("outputs/last" if run == "last" else run)
    if given.parts[:2] == ("outputs", "last"):
        last = Path(os.environ.get(LAST_RUN) or _last_run())
        check_last("outputs/last", last)
        given = Path(last, *given.parts[2:])
    path = Path(os.path.realpath(given))  # Path.resolve raises an error for a link to itself
    if path.is_file():
        _check_not_elsewhere(given)
        if not zipfile.is_zipfile(path):  # reported before torch is loaded
            raise ValueError(f"{path} is damaged or not a checkpoint")
        folder = path.parent.parent if path.parent.name == "checkpoints" else path.parent
        check_folder(folder)
        return folder, path
    if not path.is_dir():
        missing = (
            "there is no run yet in outputs/" if run == "last" else f"{run} is neither a run directory nor a checkpoint"
        )
        raise FileNotFoundError(f"{missing}; python train.py makes one")
    file, shown = path / "checkpoints" / f"{checkpoint}.ckpt", os.path.relpath(path)
    if not (path / "config.yaml").is_file():
        runs = sorted(found.parent for found in path.glob("*/config.yaml"))
        hint = f"; {os.path.relpath(runs[-1])} is one" if runs else ""
        raise FileNotFoundError(f"{shown} is not a run directory: it has no config.yaml{hint}")
    if not file.is_file():
        if checkpoint == "best" and file.with_name("last.ckpt").is_file():
            raise FileNotFoundError(
                f"the run in {shown} has no best.ckpt: none of its epochs has measured, at its end, what tells which "
                "one is best (monitor=); checkpoint=last takes last.ckpt"
            )
        raise FileNotFoundError(f"the run in {shown} has no {checkpoint}.ckpt: it has finished no epoch")
    check_folder(path)
    return path, file


def _last_run() -> Path:
    """Return ``outputs/last``, or the newest run in ``outputs/`` where the file system has no symbolic links."""
    last = Path("outputs", "last")
    found = () if os.path.lexists(last) else Path("outputs").glob("*/*/checkpoints/last.ckpt")
    runs = [file.parents[1] for file in found if (file.parents[1] / "config.yaml").is_file()]
    return max(runs, key=lambda folder: (folder / "config.yaml").stat().st_mtime_ns, default=last)


def _check_not_elsewhere(file: Path) -> None:
    """Raise ValueError for a checkpoint that is a link out of its directory: to resume it would continue another run.

    The directory itself may be a link, as ``outputs/last`` is.
    """
    folder = file.absolute().parent
    if not is_within(file, folder.parent if folder.name == "checkpoints" else folder):
        raise ValueError(f"{file} is refused: it is a link to {file.resolve()}; name that file itself")


def read_checkpoint(file: str | Path, map_location: Any = "cpu") -> Any:
    """Read a checkpoint without running any code, and rename what older versions called otherwise."""
    if "://" in str(file):
        raise ValueError(f"{file} is not a file on this machine")
    checkpoint = load_plain(file, map_location)
    if isinstance(checkpoint, dict):
        upgrade_checkpoint(checkpoint)
    return checkpoint


def load_plain(file: str | Path, map_location: Any = "cpu", mmap: bool = False) -> Any:
    """Return the numbers, words, containers and tensors in a file of torch.save. Anything else in it is an error.

    Args:
        map_location, mmap: see ``torch.load``.
    """
    import torch

    # Packages let torch make objects of some of their classes, and traceback.FrameSummary reads a file when it is made.
    added = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    try:  # weights_only is explicit: a variable can change the default
        content = torch.load(file, map_location=map_location, weights_only=True, mmap=mmap)
    finally:
        torch.serialization.add_safe_globals(added)
    return _rebuild(content, {})


PLAIN = (str, int, float, bool, complex, bytes, type(None))


def _rebuild(value: Any, rebuilt: dict[int, Any]) -> Any:
    """Return a value in new containers. Those that torch reads may have attributes, and methods among them.

    They could then show one content to what checks it and another to what uses it.

    Args:
        rebuilt: what was rebuilt before, by the identity of the old value.

    Raises:
        ValueError: it is of a class that no checkpoint of this project holds.
    """
    import torch

    from runs import internals

    kind = type(value)
    if kind in (*PLAIN, torch.Size, torch.dtype, torch.device) or id(value) in rebuilt:
        return rebuilt.get(id(value), value)
    new: Any
    if kind in (dict, OrderedDict, Counter):
        new = rebuilt[id(value)] = kind()
        for key, one in dict.items(value):
            new[_rebuild(key, rebuilt)] = _rebuild(one, rebuilt)
        if kind is OrderedDict:  # a state dict
            internals.copy_layer_versions(value, new)
    elif kind in (list, tuple, set):
        new = kind(_rebuild(one, rebuilt) for one in kind.__iter__(value))
    elif kind in (torch.Tensor, torch.nn.Parameter):
        new = _with_own_memory(torch.Tensor.detach(value), rebuilt)
    else:
        raise ValueError(f"it holds a {kind.__name__}, which this project does not write")
    rebuilt[id(value)] = new
    return new


def _with_own_memory(tensor: Any, rebuilt: dict[int, Any]) -> Any:
    """Return a tensor whose memory is that of its numbers, and of no other tensor.

    torch's optimizers trust that. Steps of one that are written into another, such as the indices of a sparse tensor,
    would let it write anywhere.
    """
    import torch

    if tensor.layout != torch.strided or tensor.is_nested or tensor.is_quantized or tensor.is_meta:
        raise ValueError(f"it holds a tensor of another kind ({tensor.layout}), which this project does not write")
    memory = tensor.untyped_storage()
    is_whole = memory.nbytes() == tensor.numel() * tensor.element_size() and tensor.storage_offset() == 0
    # With steps of zero it may be the last number many times, and an optimizer would write behind it.
    formats = (torch.contiguous_format, *((torch.channels_last,) if tensor.dim() == 4 else ()))
    is_whole &= any(tensor.is_contiguous(memory_format=one) for one in formats)
    key = -memory.data_ptr()  # identities are positive
    if not is_whole or key in rebuilt:
        return tensor.clone()
    rebuilt[key] = tensor
    return tensor


def check_undamaged(file: Path) -> None:
    """Raise ValueError for a file of torch.save in which a part differs from its checksum. torch does not look at them.

    That takes 0.9 s for each gigabyte.
    """
    if zipfile.is_zipfile(file):  # not so before torch 1.6
        with zipfile.ZipFile(file) as archive:
            if any(part.compress_type for part in archive.infolist()):  # might be of any length when it is read
                raise ValueError("it is compressed")
            if damaged := archive.testzip():
                raise ValueError(f"its part {damaged.partition('/')[2]} has changed since it was written")


def load_checkpoint(file: Path) -> dict[str, Any]:
    """Return a checkpoint of this project. Its ``config`` is safe to instantiate after this.

    Raises:
        ValueError: it is damaged, comes from elsewhere, or holds a config that would run something.
    """
    try:
        check_undamaged(file)
        checkpoint = read_checkpoint(file)
    except Exception as error:  # torch raises many kinds of errors for a damaged or foreign file
        reason = one_line(error)
        if "Weights only load failed" in reason:
            raise ValueError(
                f"{file} is refused: it holds more than numbers and plain values, which could run code"
            ) from error
        raise ValueError(f"{file} is damaged or not a checkpoint: {reason[:200]}") from error
    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get("config"), dict):
        lightning = checkpoint.get("pytorch-lightning_version") if isinstance(checkpoint, dict) else None
        origin = f" (Lightning {lightning} wrote it)" if lightning else ""
        raise ValueError(f"{file} is not a checkpoint of this project: it holds no config{origin}")
    try:
        check_words(checkpoint, str(file))
    except RecursionError as error:  # a list or dict holds itself
        raise ValueError(f"{file} is damaged: its values have no end") from error
    if missing := {*CHECKPOINT_GROUPS, "trainer", "seed", "threads", "choices"} - set(checkpoint["config"]):
        made_by = checkpoint.get("made_by", "it does not say which")
        lacks = ", ".join(sorted(missing))
        raise ValueError(f"{file} was written by another version of this project ({made_by}): its config lacks {lacks}")
    check_safe(checkpoint["config"], str(file))
    weights = checkpoint.get("state_dict")
    if not isinstance(weights, dict) or not all(isinstance(name, str) for name in weights):
        raise ValueError(f"{file} is damaged: it holds no weights")
    return checkpoint
