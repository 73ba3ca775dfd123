"""Training on the published MNIST."""

import json

import pytest

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
