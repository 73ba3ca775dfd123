"""Training on the published MNIST."""

import json
import re

import pytest

from callbacks.judge import FIGURES

pytestmark = pytest.mark.real


def test_lenet_reaches_97_percent_on_mnist_in_one_epoch(shell, real_root, tmp_path) -> None:
    answer = shell("model=lenet", "trainer.max_epochs=1", "trainer.accelerator=cpu")
    assert answer.returncode == 0, answer.stderr
    result = json.loads((tmp_path / "outputs/last/result.json").read_text())
    assert result["metrics"]["test/acc"] >= 0.97
    assert result["data_md5"]


def test_second_start_needs_no_network(shell, real_root, tmp_path) -> None:
    nowhere = "http://127.0.0.1:9"
    offline = {"http_proxy": nowhere, "https_proxy": nowhere, "npm_config_registry": nowhere}
    answer = shell("model=mlp", "trainer.max_epochs=1", "trainer.limit_train_batches=2", **offline)
    assert answer.returncode == 0, answer.stderr
    assert "getting" not in answer.stdout


@pytest.mark.slow
def test_vae_draws_the_digits_that_its_experiment_expects(shell, real_root, tmp_path) -> None:
    answer = shell("experiment=mnist_cnn", "trainer.max_epochs=5", "trainer.accelerator=cpu", "hydra.run.dir=judge")
    assert answer.returncode == 0, answer.stderr
    judge = ("callbacks=judge", "callbacks.judge.run=judge", "trainer.accelerator=cpu")
    answer = shell("experiment=mnist_vae", *judge, "check=true")
    assert answer.returncode == 0, answer.stderr
    for name in FIGURES:
        assert re.search(rf"test/{name} .* as expected", answer.stdout)
