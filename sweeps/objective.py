"""What a search is about: the metric that its runs choose their best epoch by."""

from hydra.utils import get_object
from omegaconf import DictConfig

from runs.monitor import Monitors, known_modes


def search_objective(cfg: DictConfig) -> Monitors:
    """Return the metric of a search and its mode, from the config that its runs share.

    It must be known before the first run. So where neither the config nor the model's class names one, it is the
    accuracy of a classifier, and the loss of any other model, in the validation.

    Raises:
        ValueError: see :class:`Monitors`.
    """
    model = get_object(cfg.model._target_)
    usual = "val/acc" if hasattr(model, "classes") else "val/loss"
    own = getattr(model, "monitor", None)
    asked = cfg.monitor or (own if isinstance(own, str) else usual)
    metrics = {name: get_object(settings._target_) for name, settings in (cfg.metrics or {}).items() if settings}
    return Monitors(asked, cfg.mode, model, known_modes(metrics))
