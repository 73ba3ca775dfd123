"""Write a finished run for other programs: rebuild → export → check against the run.

python export.py run=last output=model.onnx
"""

import json
import logging
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from cli.build import load_run
from cli.main import main
from runs.files import atomic_write

log = logging.getLogger(__name__)


def export(cfg: DictConfig, run_dir: Path) -> Path:
    """Writes the net of a run to ``cfg.output``; its ending says how."""
    output = Path(str(cfg.output))
    writers = {".onnx": _onnx, ".pt2": _program, ".safetensors": _safetensors, ".pt": _state_dict}
    if output.suffix not in writers:
        raise ValueError(f"output={output} must end in one of {', '.join(writers)}")
    if not output.parent.is_dir():
        raise FileNotFoundError(f"output={output}: there is no folder {output.parent}")
    _, datamodule, model = load_run(cfg.run, cfg.checkpoint)

    with atomic_write(output) as temporary:
        writers[output.suffix](datamodule, model, temporary)
    log.info("written to %s (%.1f kB)", output, output.stat().st_size / 1000)
    return output


def _state_dict(datamodule: Any, model: Any, path: Path) -> None:
    import torch

    torch.save(model.net.state_dict(), path)


def _safetensors(datamodule: Any, model: Any, path: Path) -> None:
    from safetensors.torch import save_file

    weights = {name: tensor.contiguous() for name, tensor in model.net.state_dict().items()}
    save_file(weights, path, metadata={"class_names": json.dumps(datamodule.class_names)})


def _whole(datamodule: Any, model: Any) -> tuple[Any, Any]:
    """From what a data set stores (images as uint8) to logits, as one module, and three examples of its input."""
    import torch
    from torch import Tensor, nn

    class FromStored(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = model.net

        def forward(self, inputs: Tensor) -> Tensor:  # (B, *shape), as stored, to (B, classes)
            return datamodule.denormalize_targets(self.net(datamodule.normalize(inputs)))

    generator = torch.Generator().manual_seed(0)
    size = (3, *datamodule.shape)
    if hasattr(datamodule, "load_image"):
        return FromStored().eval(), torch.randint(256, size, dtype=torch.uint8, generator=generator)
    return FromStored().eval(), torch.randn(size, generator=generator)


def _program(datamodule: Any, model: Any, path: Path) -> None:
    """The whole net, for ``torch.export.load(path).module()``: no class of this project is needed to run it."""
    import torch

    whole, example = _whole(datamodule, model)
    program = torch.export.export(whole, (example,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    with open(path, "wb") as out:
        torch.export.save(program, out, extra_files={"class_names": json.dumps(datamodule.class_names)})


def _onnx(datamodule: Any, model: Any, path: Path) -> None:
    """The same for onnxruntime, checked against torch; the names of the classes are in its metadata."""
    import onnx
    import onnxruntime
    import torch

    for name in ("onnxscript", "onnx_ir"):  # they tell each pass they make
        logging.getLogger(name).setLevel(logging.WARNING)
    whole, example = _whole(datamodule, model)
    program: Any = torch.onnx.export(
        whole, (example,), dynamo=True, verbose=False, input_names=["inputs"], output_names=["logits"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
    )  # fmt: skip
    graph = program.model_proto
    onnx.helper.set_model_props(graph, {"class_names": json.dumps(datamodule.class_names)})
    onnx.save(graph, path)

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for batch in (example, example[:1]):
        with torch.inference_mode():
            expected = whole(batch)
        (got,) = session.run(None, {"inputs": batch.numpy()})
        torch.testing.assert_close(torch.from_numpy(got), expected, rtol=1e-5, atol=1e-5)


if __name__ == "__main__":
    main(export, "export")
