"""What the model of a run says about examples: as rows of a table, as lines of text, and as a figure."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from cli.examples import Examples

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

Row = dict[str, Any]


class Numbers:
    """Predictions of a regression: one or more numbers for each example, in the units of the data."""

    max_shown = 48  # examples that are printed and drawn; predictions.csv has all of them

    def __init__(self, datamodule: Any, model: Any) -> None:
        self.datamodule, self.model = datamodule, model

    def predict(self, inputs: "Tensor") -> "Tensor":
        """Return the outputs of the model for a batch of stored inputs."""
        return self.datamodule.denormalize_targets(self.model(self.datamodule.normalize(inputs)))

    def rows(self, examples: Examples, outputs: "Tensor") -> list[Row]:
        """Return a row for each example. All batches have the same columns."""
        rows: list[Row] = [
            {"input": name, "prediction": output.squeeze().tolist()}
            for name, output in zip(examples.names, outputs, strict=True)
        ]
        if examples.targets is not None:
            targets = self.datamodule.denormalize_targets(examples.targets)
            for row, target in zip(rows, targets, strict=True):
                row["truth"] = target.squeeze().tolist()
        return rows

    def format(self, row: Row) -> str:
        """Return a row as it is printed; nothing where there is nothing to say."""
        return f"{row['input']}  {_format_value(row['prediction'])}{_truth(row)}"

    def figure(self, examples: Examples, outputs: "Tensor", title: str = "") -> "Figure | None":
        """Return images with their predictions below a title, or None where there is nothing to draw."""
        return None


class Classes(Numbers):
    """Predictions of a classifier: the most probable class and the three most probable ones."""

    def rows(self, examples: Examples, outputs: "Tensor") -> list[Row]:
        names = self.datamodule.class_names
        rows = []
        for index, (name, probs) in enumerate(zip(examples.names, self.model.probabilities(outputs), strict=True)):
            top = probs.topk(min(3, len(probs)))
            best = [
                f"{names[label]} {prob:.4f}"
                for prob, label in zip(top.values.tolist(), top.indices.tolist(), strict=True)
            ]
            row: Row = {"input": name, "label": names[top.indices[0]], "probability": round(top.values[0].item(), 6)}
            row["top 3"] = "; ".join(best)
            if examples.targets is not None:
                row["truth"] = names[examples.targets[index]]
            rows.append(row)
        return rows

    def format(self, row: Row) -> str:
        return f"{row['input']}  {row['top 3']}{_truth(row)}"

    def figure(self, examples: Examples, outputs: "Tensor", title: str = "") -> "Figure | None":
        from plots.images import predictions

        if not hasattr(self.datamodule, "load_image"):
            return None
        probs, captions = self.model.probabilities(outputs), [Path(name).name for name in examples.names]
        images = self.datamodule.to_uint8(self.datamodule.normalize(examples.inputs))
        return predictions(images, probs, examples.targets, self.datamodule.class_names, title, captions)


class Comparisons(Numbers):
    """Verdicts on pairs of images: whether both show the same."""

    verdicts = ("different", "equal")

    def predict(self, inputs: "Tensor") -> "Tensor":
        """Return the probability that the two are equal, ``(B,)``, for pairs on top of each other."""
        return self.model.compare(*self.datamodule.normalize(inputs).chunk(2, 1))

    def rows(self, examples: Examples, outputs: "Tensor") -> list[Row]:
        rows = []
        for name, probs in zip(examples.names, _both(outputs), strict=True):
            label = int(probs.argmax())
            rows.append({"input": name, "label": self.verdicts[label], "probability": round(probs[label].item(), 6)})
        if examples.targets is not None:
            for row, target in zip(rows, examples.targets.tolist(), strict=True):
                row["truth"] = self.verdicts[target]
        return rows

    def format(self, row: Row) -> str:
        return f"{row['input']}  {row['label']} {100 * row['probability']:.1f} %{_truth(row)}"

    def figure(self, examples: Examples, outputs: "Tensor", title: str = "") -> "Figure | None":
        from plots.images import predictions

        if not hasattr(self.datamodule, "load_image"):
            return None
        images = self.datamodule.to_uint8(self.datamodule.normalize(examples.inputs))
        return predictions(images, _both(outputs), examples.targets, self.verdicts, title, examples.names)


class Reconstructions(Numbers):
    """Reconstructions of an autoencoder. How far each is from its input says how unusual the input is."""

    def predict(self, inputs: "Tensor") -> "Tensor":
        return self.model.reconstruct(self.datamodule.normalize(inputs))

    def rows(self, examples: Examples, outputs: "Tensor") -> list[Row]:
        errors = (outputs - self.datamodule.normalize(examples.inputs)).square().flatten(1).mean(1)
        rows: list[Row] = [
            {"input": name, "squared error": error} for name, error in zip(examples.names, errors.tolist(), strict=True)
        ]
        if examples.targets is not None and self.datamodule.class_names:
            for row, target in zip(rows, examples.targets.tolist(), strict=True):
                row["truth"] = self.datamodule.class_names[target]
        return rows

    def format(self, row: Row) -> str:
        return f"{row['input']}  squared error {_format_value(row['squared error'])}{_truth(row)}"

    def figure(self, examples: Examples, outputs: "Tensor", title: str = "") -> "Figure | None":
        from plots.generative import reconstructions

        if not hasattr(self.datamodule, "load_image"):
            return None
        return reconstructions(examples.inputs, self.datamodule.to_uint8(outputs), title=title)


class Continuations(Numbers):
    """Continuations of series, each by as many numbers as it has."""

    max_shown = 6

    def predict(self, inputs: "Tensor") -> "Tensor":
        return self.model.continue_series(self.datamodule.normalize(inputs), inputs.shape[1])

    def rows(self, examples: Examples, outputs: "Tensor") -> list[Row]:
        return super().rows(examples._replace(targets=None), outputs)  # the targets are not what comes next

    def format(self, row: Row) -> str:
        name, numbers = row["input"], row["prediction"]
        start = f"{name[:28]}…" if len(name) > 30 else name
        more = f" … ({len(numbers):,} numbers)" if len(numbers) > 6 else ""
        return f"{start}  continued by {_format_value(numbers[:6])}{more}"

    def figure(self, examples: Examples, outputs: "Tensor", title: str = "") -> "Figure | None":
        from plots.series import continuations

        labels = [name if len(name) <= 60 else f"{name[:58]}…" for name in examples.names]
        return continuations(examples.inputs.numpy(), outputs.numpy(), labels)


class Samples(Numbers):
    """Images that a generator makes from latent vectors."""

    max_shown = 64

    def predict(self, inputs: "Tensor") -> "Tensor":
        return self.datamodule.to_uint8(self.model.sample(inputs))

    def rows(self, examples: Examples, outputs: "Tensor") -> list[Row]:
        return [
            {"input": name, "latent vector": " ".join(f"{number:.9g}" for number in latent)}
            for name, latent in zip(examples.names, examples.inputs.tolist(), strict=True)
        ]

    def format(self, row: Row) -> str:
        return ""  # the figure shows it

    def figure(self, examples: Examples, outputs: "Tensor", title: str = "") -> "Figure | None":
        from plots.generative import sample_grid

        return sample_grid(outputs, title or "generated")


def predictions_of(datamodule: Any, model: Any, samples: bool) -> Numbers:
    """Return what a model predicts, by what it offers.

    Raises:
        ValueError: it predicts nothing, or generates nothing and ``samples`` are wanted.
    """
    from runs.protocols import Classifies, Compares, ContinuesSeries, Generates, Reconstructs

    if samples:
        if not isinstance(model, Generates):
            raise ValueError(f"samples= is for a model that generates, such as model=vae, not {type(model).__name__}")
        return Samples(datamodule, model)
    if isinstance(model, Compares):
        return Comparisons(datamodule, model)
    if isinstance(model, Reconstructs):
        return Reconstructions(datamodule, model)
    if isinstance(model, ContinuesSeries):
        return Continuations(datamodule, model)
    if isinstance(model, Generates):
        raise ValueError(f"{type(model).__name__} predicts nothing about an input, it generates: try samples=64")
    is_classifier = datamodule.class_names and isinstance(model, Classifies)
    return (Classes if is_classifier else Numbers)(datamodule, model)


def _both(equal: "Tensor") -> "Tensor":
    """Return the probabilities of different and equal ``(B, 2)``, from those of equal ``(B,)``."""
    import torch

    return torch.stack([1 - equal, equal], 1)


def _truth(row: Row) -> str:
    return f"  true: {_format_value(row['truth'])}" if "truth" in row else ""


def _format_value(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(map(_format_value, value))
    if not isinstance(value, float):
        return str(value)
    return f"{value:,.0f}" if 1e4 <= abs(value) < 1e15 else f"{value:.4g}"
