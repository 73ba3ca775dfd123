"""A Hydra sweeper that searches with Optuna: ``python train.py -m sweep=mnist_lr``.

The published plugin (hydra-optuna-sweeper 1.3.0) requires Optuna below 3, fails with a SQLite study under SQLAlchemy 2,
and cannot prune or resume.
"""

import contextlib
import os
import re
import uuid
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep
from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from runs.format import check_positive_int, printable
from sweeps.callback import SweepSummary
from sweeps.jobs import (
    LEFT,
    REFUSED,
    check_gpus,
    check_kind,
    check_subdir,
    check_submitit,
    check_sweep_dir,
    ends_at_failure,
    has_failed,
    mark_of_failure,
    removed_if_not_submitted,
)
from sweeps.objective import search_objective
from sweeps.overrides import parse_overrides
from sweeps.parallel import launch

if TYPE_CHECKING:
    import optuna
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial


WORKER_LOCK = re.compile(r"\.worker-[0-9a-f]{12}\.lock")


class OptunaSweeper(Sweeper):
    """Asks Optuna's TPE sampler (Bergstra et al. 2011) for settings, runs them as jobs, and reports their metrics.

    The study is ``study.db`` in the sweep directory. The first trial has the settings of the config, where they lie in
    the search space. The settings of trial n depend on the seed, n and the earlier results, so an interrupted search
    continues as if it had not been interrupted. Several processes may search in one directory (``sweep_resume``), and a
    launcher with ``n_jobs`` gets that many jobs at once. Another process takes over a trial whose process has died.

    Args:
        params: the search space as Hydra's overrides (``tag(log, interval(1e-4, 1e-1))``, ``choice(32, 64)``,
            ``range(2, 9)``), and plain values for all jobs.
        metric: name of a metric, never one of the test set; None is the config's ``monitor``, or that of the model's
            class, or else ``val/acc`` of a classifier and ``val/loss`` of another model.
        direction: ``maximize`` or ``minimize``; None is the config's ``mode``, or the one that the metric is known for.
        n_trials: total number of trials, those of earlier commands included.
        startup_trials: number of random trials before the sampler learns from them.
        seed: seed of the search.
        n_jobs: number of trials that the launcher gets at once; None is its own ``n_jobs``, or 1 where it has none.
    """

    config: DictConfig
    launcher: Launcher
    space: dict[str, Any]  # setting -> distribution

    def __init__(
        self,
        params: dict[str, Any],
        metric: str | None,
        direction: str | None,
        n_trials: int,
        startup_trials: int,
        seed: int,
        n_jobs: int | None = None,
    ) -> None:
        if direction not in ("maximize", "minimize", None):
            raise ValueError(f"hydra.sweeper.direction={direction} must be maximize or minimize")
        if metric and metric.startswith("test"):
            raise ValueError(f"hydra.sweeper.metric={metric}: a search that looks at the test set makes it worthless")
        if direction and not metric:
            raise ValueError(f"hydra.sweeper.direction={direction} goes with hydra.sweeper.metric=")
        for name, number in (("n_trials", n_trials), ("startup_trials", startup_trials)):
            check_positive_int(f"hydra.sweeper.{name}", number)
        if n_jobs is not None:
            check_positive_int("hydra.sweeper.n_jobs", n_jobs)
        self.params, self.metric, self.direction = params, metric, direction
        self.n_trials, self.startup_trials, self.seed, self.n_jobs = n_trials, startup_trials, seed, n_jobs

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        import optuna  # noqa: F401  where it is missing, fail before a directory is made

        self.config, self.loader = config, hydra_context.config_loader
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )
        self.at_once = self.n_jobs or config.hydra.launcher.get("n_jobs", 1)
        if self.at_once < 1:  # joblib: all cores
            self.at_once = os.cpu_count() or 1

    def sweep(self, arguments: list[str]) -> None:
        from sweeps.study import check_metric, check_space, open_study, storage_errors

        self._parse(arguments)
        if self.metric:  # the runs choose their best epoch by it too
            self.fixed.append(f"monitor={self.metric}")
            self.fixed += [f"mode={self.direction[:3]}"] if self.direction else []
        base = self.loader.load_sweep_config(self.config, self.fixed)
        if base.data.get("validate_on") == "test":
            raise ValueError(
                "a search that looks at the test set makes it worthless: "
                "data.validate_on=val data.val_size=5000 holds out others"
            )
        check_gpus(base, self.n_trials)
        self.objective = search_objective(base)
        (name, mode), *_ = self.objective.candidates.items()
        if not base.monitor and name == "val/loss":  # the runs would rank an accuracy first
            self.fixed.append(f"monitor={name}")
        direction = {"max": "maximize", "min": "minimize"}[mode]
        sweep_dir = Path(self.config.hydra.sweep.dir)
        check_submitit(self.config, sweep_dir)
        sweep_dir.mkdir(parents=True, exist_ok=True)
        check_sweep_dir(sweep_dir)
        check_kind(sweep_dir, is_search=True)
        fails_fast = ends_at_failure(self.config)
        self._check_jobs(base, sweep_dir)
        with storage_errors(sweep_dir), _removed_if_refused(sweep_dir), _worker_lock(sweep_dir) as worker:
            with _locked(sweep_dir / ".study.lock"):
                study = open_study(sweep_dir, direction=direction)
                if (begun := study.direction.name.lower()) != direction:
                    raise ValueError(
                        f"the search in {sweep_dir} has begun to {begun} its metric: monitor= cannot change"
                    )
                check_metric(study, sweep_dir, name)
                check_space(study, sweep_dir, self.space)
                if not study.get_trials(deepcopy=False) and (start := self._first_trial(base)):
                    study.enqueue_trial(start)
            marked = mark_of_failure(sweep_dir) if fails_fast else contextlib.nullcontext()
            with marked, removed_if_not_submitted(self.config):
                self._run_trials(study, sweep_dir, worker, fails_fast)

    def _run_trials(self, study: "optuna.Study", sweep_dir: Path, worker: str, fails_fast: bool) -> None:
        """Run trials until there are as many as asked for, or a failure ends the search."""
        from optuna.trial import TrialState

        statuses: Counter[str] = Counter()
        trials = self._next_trials(study, sweep_dir, worker)
        while trials:
            for trial, job in zip(trials, self._launch(trials), strict=True):
                status = job.return_value["status"]
                statuses[status] += 1
                SweepSummary.complete &= status not in ("failed", REFUSED)
                if status not in (LEFT, REFUSED):  # such a trial is continued as an interrupted one is
                    self._report(study, trial, job.return_value)
            if fails_fast and has_failed(sweep_dir):
                running = study.get_trials(deepcopy=False, states=(TrialState.RUNNING, TrialState.WAITING))
                SweepSummary.left = max(self.n_trials - len(study.get_trials(deepcopy=False)) + len(running), 0)
                break
            if REFUSED in statuses:
                raise RuntimeError("the search has ended: an interrupted trial could not be continued")
            if statuses["failed"] == statuses.total() >= 3:
                raise RuntimeError("the search has ended: its first runs have all failed")
            trials = self._next_trials(study, sweep_dir, worker)

    def _parse(self, arguments: list[str]) -> None:
        """Split the overrides, those of ``params`` included, into what all jobs share and what is searched."""
        overrides = parse_overrides(self.loader, self.params, arguments)
        fixed = {key: override for key, override in overrides.items() if not override.is_sweep_override()}
        self.fixed = [f"{key}={override.get_value_element_as_str()}" for key, override in fixed.items()]
        self.space = {key: _distribution(override) for key, override in overrides.items() if key not in fixed}
        for key in self.space:
            if key in ("seed", "data.fold"):
                raise ValueError(
                    f"a search must not choose the {key}: it is not a hyperparameter, and its effect is chance"
                )
        if not self.space:
            raise ValueError("there is nothing to search; a range is optimizer.lr='tag(log, interval(1e-4, 1e-1))'")

    def _check_jobs(self, base: DictConfig, sweep_dir: Path) -> None:
        """Compose a job of the search, and one for each option of a group, so that an error comes before a trial."""
        settings = {
            key: getattr(distribution, "choices", None) or [distribution.low]
            for key, distribution in self.space.items()
        }
        first = {key: values[0] for key, values in settings.items()}
        others = [
            first | {key: value}
            for key, values in settings.items()
            if key in base.hydra.runtime.choices
            for value in values[1:]
        ]
        for job in (first, *others):
            texts = [*self.fixed, *(f"{key}={_format(value)}" for key, value in job.items())]
            check_subdir(self.loader.load_sweep_config(self.config, texts), sweep_dir)

    def _first_trial(self, base: DictConfig) -> dict[str, Any]:
        """Return the settings of the config, or nothing where one of them is outside the search space."""
        start = {}
        for key, distribution in self.space.items():
            value = base.hydra.runtime.choices.get(key) or OmegaConf.select(base, key)
            if hasattr(distribution, "choices"):
                value = next((text for text in distribution.choices if _parsed(key, text) == value), str(value))
            if not _contains(distribution, value):
                return {}
            start[key] = value
        return start

    def _next_trials(self, study: "optuna.Study", sweep_dir: Path, worker: str) -> list["FrozenTrial"]:
        """Return trials whose process has died, or else new ones; none when there are ``n_trials``."""
        from optuna.samplers import TPESampler
        from optuna.trial import TrialState

        from sweeps.study import open_trial, read_trial

        with _locked(sweep_dir / ".study.lock"):
            running = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
            trials = [trial for trial in running if not _is_alive(sweep_dir, trial.user_attrs.get("worker"))]
            for trial in [trial for trial in trials if not self._fits(trial.params)]:
                if not set(trial.params) < set(self.space):
                    settings = " ".join(f"{name}={value}" for name, value in trial.params.items())
                    raise ValueError(
                        f"{sweep_dir} has an interrupted trial with {printable(settings)}, which this search does not "
                        "hold: sweep_resume= needs the ranges that the search was started with"
                    )
                study.tell(trial.number, state=TrialState.FAIL)  # its process died while creating it
                trials.remove(trial)
            trials = trials[: self.at_once]
            for trial in trials:
                open_trial(study, sweep_dir, trial.number).set_user_attr("worker", worker)
            while not trials or len(trials) < self.at_once:
                begun = [t for t in study.get_trials(deepcopy=False) if t.state != TrialState.WAITING]
                if len(begun) >= self.n_trials:
                    break
                study.sampler = TPESampler(
                    n_startup_trials=self.startup_trials, seed=(1000 * self.seed + len(begun)) % 2**32
                )
                try:
                    new = study.ask(self.space)
                except ValueError as error:
                    raise ValueError(f"{sweep_dir / 'study.db'} has a trial with other settings: {error}") from error
                if not self._fits((trial := read_trial(study, new.number)).params):
                    study.tell(new.number, state=TrialState.FAIL)  # it waited in the study, with parameters of its own
                    continue
                new.set_user_attr("worker", worker)
                trials.append(trial)
        return sorted(trials, key=lambda trial: trial.number)

    def _fits(self, params: dict[str, Any]) -> bool:
        """Return whether the parameters of a trial are those of the search space, in range."""
        space = self.space
        return params.keys() == space.keys() and all(_contains(space[key], value) for key, value in params.items())

    def _overrides(self, trial: "FrozenTrial") -> list[str]:
        """Return the overrides of a job, of values that are checked here: the study may be untrusted."""
        if not self._fits(params := dict(trial.params)):
            raise ValueError(f"trial {trial.number} in study.db has settings that this search does not hold")
        return [*self.fixed, *(f"{key}={_format(params[key])}" for key in self.space)]

    def _launch(self, trials: list["FrozenTrial"]) -> Iterator[Any]:
        """Run the trials as jobs, numbered as in the study."""
        while trials:
            numbers = [trial.number for trial in trials]
            size = next(n for n in range(1, len(trials) + 1) if numbers[n:] == [] or numbers[n] != numbers[0] + n)
            jobs = list(map(self._overrides, trials[:size]))
            yield from launch(self.launcher, jobs, numbers[0])
            trials = trials[size:]

    def _report(self, study: "optuna.Study", trial: "FrozenTrial", result: dict[str, Any]) -> None:
        from optuna.trial import TrialState

        if result["status"] != "finished":  # a diverged run counts as pruned, so the search learns from it
            state = TrialState.FAIL if result["status"] == "failed" else TrialState.PRUNED
            study.tell(trial.number, state=state)
        else:
            self.objective.check_validation(any(name.startswith("val/") for name in result["metrics"]))
            self.objective.check_measured(result["metrics"])
            monitor = self.objective.resolve(result["metrics"])
            study.tell(trial.number, result["metrics"][monitor.name] if monitor else None)


def _distribution(override: Override) -> "BaseDistribution":
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    sweep = override.value()
    if isinstance(sweep, IntervalSweep):
        bounds: tuple[Any, Any] = sweep.start, sweep.end  # whole numbers for int(interval(1, 9))
        kind = IntDistribution if all(isinstance(bound, int) for bound in bounds) else FloatDistribution
        try:
            return kind(*bounds, log="log" in sweep.tags)
        except ValueError as error:
            raise ValueError(f"{override.input_line}: {error}") from error
    if isinstance(sweep, RangeSweep):
        numbers: list[Any] = list(sweep.range())
        if numbers and all(isinstance(number, int) for number in numbers):
            return IntDistribution(numbers[0], numbers[-1], step=int(sweep.step))
    return CategoricalDistribution(list(override.sweep_string_iterator()))


def _parsed(key: str, text: str) -> Any:
    """Return the value of a choice, which Optuna keeps as text: a list, a number, a word."""
    return OverridesParser.create().parse_override(f"{key}={text}").value()


def _contains(distribution: Any, value: Any) -> bool:
    if hasattr(distribution, "choices"):
        return value in distribution.choices
    return isinstance(value, (int, float)) and distribution.low <= value <= distribution.high


def _format(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)  # four digits are short to type


# --- locks of the processes that search: the system releases them however a process ends --------------------------


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    from filelock import FileLock

    with FileLock(path):
        yield


@contextlib.contextmanager
def _removed_if_refused(sweep_dir: Path) -> Iterator[None]:
    """Remove a study that this process has made, after an error before a trial or another process left anything."""
    before = set(os.listdir(sweep_dir))
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError), _locked(sweep_dir / ".study.lock"):
            names, made = set(os.listdir(sweep_dir)), {"study.db", ".study.lock"} - before
            if "study.db" in made and names - before <= made and not any(map(WORKER_LOCK.fullmatch, names)):
                for name in made:
                    (sweep_dir / name).unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def _worker_lock(sweep_dir: Path) -> Iterator[str]:
    """Yield the name of a lock file that this process holds while it searches in the directory."""
    name = f".worker-{uuid.uuid4().hex[:12]}.lock"
    try:
        with _locked(sweep_dir / name):
            yield name
    finally:
        (sweep_dir / name).unlink(missing_ok=True)


def _is_alive(sweep_dir: Path, name: Any) -> bool:
    from filelock import FileLock, Timeout

    # The study may be untrusted: another name would lock, empty and remove a file of the user's.
    ours = isinstance(name, str) and WORKER_LOCK.fullmatch(name)
    if not ours or not (sweep_dir / name).exists():
        return False
    try:
        with FileLock(sweep_dir / name, timeout=0):
            pass
    except Timeout:
        return True
    (sweep_dir / name).unlink(missing_ok=True)
    return False
