"""What the model of a run says to what the page of demo.py sends."""

import base64
import io
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cli.examples import Examples
from cli.predictions import Classes, Comparisons, Numbers, predictions_of
from runs.format import printable

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor


class Answers:
    """What the model of a run says to what the page sends.

    Attributes:
        about: what the page asks for: ``kind`` is ``images``, ``numbers``, ``series`` or ``samples``.
    """

    def __init__(self, name: str, datamodule: Any, model: Any) -> None:
        from runs.protocols import Compares, ContinuesSeries, Generates, Reconstructs

        self.datamodule, self.model = datamodule, model
        self.generates = isinstance(model, Generates) and not isinstance(model, Reconstructs)
        self.predictions: Numbers = predictions_of(datamodule, model, samples=self.generates)
        self.about: dict[str, Any] = {"name": name}
        if self.generates:
            self.about |= {"kind": "samples"}
        elif hasattr(datamodule, "load_image"):
            self.about |= {"kind": "images", "count": 1 + isinstance(model, Compares)}
            self.about["draws"] = bool(datamodule.dark_background)
        elif isinstance(model, ContinuesSeries):
            self.about |= {"kind": "series"}
        elif len(datamodule.shape) == 1:
            names = getattr(datamodule, "columns", None) or [f"x{number + 1}" for number in range(datamodule.shape[0])]
            self.about |= {"kind": "numbers", "columns": list(map(str, names))}
        else:
            raise ValueError(f"demo.py shows nothing for inputs of shape {tuple(datamodule.shape)}")

    def answer(self, asked: dict[str, Any]) -> dict[str, Any]:
        """Return what the page shows: ``bars``, names with probabilities, a ``text``, ``images`` with captions.

        Raises:
            ValueError: the page sent something that is no input of the model.
        """
        import torch

        from plots.generative import mosaic

        notes: list[str] = []
        images: list[dict[str, str]] = []
        with torch.inference_mode():
            if self.generates:
                inputs = torch.randn(64, self.model.latent_dim)
                samples = mosaic(self.predictions.predict(inputs), columns=8)
                return {"images": [_shown("images of new random numbers", samples)]}
            if self.about["kind"] == "images":
                read = [self._read(picture) for picture in asked["images"]]
                images = [_shown("what the net sees", _array(image)) for image, _ in read]
                notes = [note for _, of_one in read for note in of_one]
                inputs = torch.cat([image for image, _ in read])[None]
            else:
                inputs = torch.tensor([asked["numbers"]], dtype=torch.float32)
                if not asked["numbers"]:
                    raise ValueError("at least one number is needed")
                if self.about["kind"] == "numbers" and inputs.shape[1:] != tuple(self.datamodule.shape):
                    raise ValueError(f"{self.datamodule.shape[0]} numbers are needed")
            outputs = self.predictions.predict(inputs)
            (row,) = self.predictions.rows(Examples(["input"], inputs, None), outputs)
            if "squared error" in row:
                images.append(_shown("reconstruction", _array(self.datamodule.to_uint8(outputs)[0])))
            text = self.predictions.format(row | {"input": ""}).strip()
            return {"bars": self._bars(outputs), "text": text, "notes": notes, "images": images}

    def _bars(self, outputs: Any) -> list[tuple[str, float]]:
        """Return names with probabilities, of the classes or of the verdicts on a pair."""
        if isinstance(self.predictions, Comparisons):
            return list(zip(self.predictions.verdicts, (1 - outputs[0].item(), outputs[0].item()), strict=True))
        if not isinstance(self.predictions, Classes):
            return []
        names = map(printable, self.datamodule.class_names)
        return list(zip(names, self.model.probabilities(outputs)[0].tolist(), strict=True))

    def _read(self, picture: str) -> tuple[Any, list[str]]:
        """Return a picture, base64, as the data set stores images, and what was done to it."""
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "picture")
            file.write_bytes(base64.b64decode(picture, validate=True))
            try:
                return self.datamodule.load_image(file)
            except ValueError as error:
                raise ValueError(str(error).replace(str(file), "the picture")) from error


def _shown(caption: str, image: "np.ndarray") -> dict[str, str]:
    """Return an image, ``(H, W)`` or ``(H, W, 3)``, with its caption for the page."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "png")
    return {"caption": caption, "png": f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"}


def _array(image: "Tensor") -> "np.ndarray":  # (C, H, W) to (H, W) or (H, W, 3)
    return image.permute(1, 2, 0).squeeze(-1).numpy()
