"""Export a finished run for other programs: load the run → export → check the export against the run.

python export.py run=last output=model.onnx
"""

import io
import json
import logging
import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from cli.build import check_names, load_run
from cli.main import main
from runs.files import atomic_write

log = logging.getLogger(__name__)

ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")  # of requirements-dev.txt; few users need them


def export(cfg: DictConfig, run_dir: Path) -> Path:
    """Write the net of a run to ``cfg.output``, in the format that its suffix names."""
    output = Path(str(cfg.output))
    formats = {".onnx": _onnx, ".pt2": _exported_program, ".safetensors": _safetensors, ".pt": _state_dict}
    if output.suffix not in formats:
        raise ValueError(f"output={output} must end in one of {', '.join(formats)}")
    if not output.parent.is_dir():
        raise FileNotFoundError(f"output={output}: there is no directory {output.parent}")
    if os.path.lexists(output):
        raise ValueError(f"output={output} would overwrite {output}: move it, or choose another name")
    if output.suffix == ".onnx" and (missing := [name for name in ONNX_PACKAGES if not find_spec(name)]):
        raise ValueError(f"output={output} needs {', '.join(missing)}: pip install {' '.join(ONNX_PACKAGES)}")
    _, datamodule, model = load_run(cfg.run, cfg.checkpoint, cfg.get("data"))

    # In memory first: on a full disk torch's own writers abort the process with a C++ stack trace.
    content = formats[output.suffix](datamodule, model)
    with atomic_write(output, overwrite=False) as temporary:
        temporary.write_bytes(content)
    log.info("written to %s (%.1f kB)", output, len(content) / 1000)
    return output


def _metadata(datamodule: Any) -> dict[str, str]:
    return {"class_names": json.dumps(datamodule.class_names), "made_by": "lit-classics"}


def _state_dict(datamodule: Any, model: Any) -> bytes:
    import torch

    buffer = io.BytesIO()
    torch.save(_shipped_part(model).state_dict(), buffer)
    return buffer.getvalue()


def _safetensors(datamodule: Any, model: Any) -> bytes:
    from safetensors.torch import save

    weights = {name: tensor.contiguous() for name, tensor in _shipped_part(model).state_dict().items()}
    return save(weights, metadata=_metadata(datamodule))


def _shipped_part(model: Any) -> Any:
    """Return the part of a model that other programs use: what it names, else its net, else all of it."""
    from runs.protocols import Exports

    return model.export_module() if isinstance(model, Exports) else getattr(model, "net", model)


def _export_module(datamodule: Any, model: Any) -> tuple[Any, Any, str]:
    """Return a module with its normalization, a batch of three example inputs, and what its outputs are.

    It takes inputs as they are stored (images as uint8). That of a generator takes latent vectors to uint8 images.
    """
    import torch
    from torch import Tensor, nn

    from runs.protocols import Exports, Generates, Reconstructs

    generator = torch.Generator().manual_seed(0)

    class ExportModule(nn.Module):
        def __init__(self, part: Any) -> None:
            super().__init__()
            check_names(part)  # what a model ships is checked in any case
            self.part = part

    class Discriminative(ExportModule):
        def forward(self, inputs: Tensor) -> Tensor:  # (B, *shape), as stored, to (B, classes), values or codes
            outputs = self.part(datamodule.normalize(inputs))
            return outputs if isinstance(model, Exports) else datamodule.denormalize_targets(outputs)

    class Generative(ExportModule):
        def forward(self, inputs: Tensor) -> Tensor:  # (B, latent_dim) to uint8 (B, C, H, W)
            return datamodule.to_uint8(model.sample(inputs))

    if isinstance(model, Generates):
        return Generative(model).eval(), torch.randn((3, model.latent_dim), generator=generator), "images"
    outputs = "codes" if isinstance(model, Reconstructs) else "logits" if datamodule.class_names else "predictions"
    module, size = Discriminative(_shipped_part(model)).eval(), (3, *datamodule.shape)
    if hasattr(datamodule, "load_image"):
        return module, torch.randint(256, size, dtype=torch.uint8, generator=generator), outputs
    return module, torch.randn(size, generator=generator), outputs


def _exported_program(datamodule: Any, model: Any) -> bytes:
    """Return the whole net for ``torch.export.load(path).module()``, which needs no class of this project."""
    import torch

    module, examples, _ = _export_module(datamodule, model)
    program = torch.export.export(module, (examples,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    buffer = io.BytesIO()
    torch.export.save(program, buffer, extra_files=_metadata(datamodule))
    return buffer.getvalue()


def _onnx(datamodule: Any, model: Any) -> bytes:
    """Return the whole net for onnxruntime, checked against torch. Its metadata holds the class names."""
    import onnx
    import onnxruntime
    import torch

    for name in ("onnxscript", "onnx_ir"):  # they log each pass over the graph
        logging.getLogger(name).setLevel(logging.WARNING)
    module, examples, outputs = _export_module(datamodule, model)
    program: Any = torch.onnx.export(
        module, (examples,), dynamo=True, verbose=False, input_names=["inputs"], output_names=[outputs],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
    )  # fmt: skip
    graph = program.model_proto
    onnx.helper.set_model_props(graph, _metadata(datamodule))
    content: bytes = graph.SerializeToString()

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    for batch in (examples, examples[:1]):
        with torch.inference_mode():
            expected = module(batch)
        (found,) = map(torch.from_numpy, session.run(None, {"inputs": batch.numpy()}))
        tolerance = {"rtol": 1e-5, "atol": 1e-5} if found.is_floating_point() else {"rtol": 0, "atol": 1}
        torch.testing.assert_close(found, expected, **tolerance)
    return content


if __name__ == "__main__":
    main(export, "export")
