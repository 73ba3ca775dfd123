"""A checkpoint from anyone reaches no memory but its own, and is not replaced by one that cannot be used."""

import shutil
import struct
from pathlib import Path
from typing import Any

import pytest
import torch

import train
from cli.build import load_run
from cli.compose import compose
from runs.checkpoint import load_checkpoint, load_plain
from runs.random_state import get_random_state, set_random_state
from tests.test_scripts import evaluate_run
from tests.untrusted import TINY, edit_checkpoint


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the directory of a run with a fused optimizer."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder := tmp_path_factory.mktemp("trained"))
        Path("run").mkdir()
        train.train_config(compose(*TINY, "trainer.max_epochs=1", "logger=none"), Path("run"))
    return folder / "run"


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("exp_avg", lambda state: torch.zeros(1)),
        ("exp_avg", lambda state: torch.zeros(())),
        ("exp_avg_sq", lambda state: torch.zeros(state.numel())[1:]),
        ("step", lambda state: torch.zeros(3)),
    ],
)
def test_state_of_another_shape_is_not_given_to_a_fused_optimizer(name: str, change: Any, trained: Path) -> None:
    """It would read and write what lies behind it."""
    shutil.copytree(trained, "run")
    file = Path("run/checkpoints/last.ckpt")
    for states in torch.load(file, weights_only=True)["optimizer_states"]:
        assert states["param_groups"][0]["fused"]
        for number, state in states["state"].items():
            edit_checkpoint(file, "optimizer_states", 0, "state", number, name, value=change(state[name]))
    with pytest.raises(ValueError, match=f"resume: {name} of the optimizer in the checkpoint has not the shape of its"):
        train.train_config(compose("resume=run", "trainer.max_epochs=2", "logger=none"), Path("run"))


def test_tensors_of_a_checkpoint_share_no_memory() -> None:
    """What is written into one of them would change another, or lie behind the end of one that was expanded."""
    whole = torch.arange(6.0).reshape(2, 3)
    parts = [whole, whole.view(-1), whole[1], whole.t(), torch.ones(1).expand(2, 3)]
    parts += [torch.zeros(6).as_strided((2, 3), (0, 0), 5)]  # it begins where its memory ends
    parts += [torch.arange(16.0).view(1, 2, 2, 4).contiguous(memory_format=torch.channels_last)]
    torch.save({"parts": parts, "empty": [torch.zeros(0), torch.zeros(0)]}, "tensors.pt")
    read = load_plain("tensors.pt")["parts"]
    assert all(torch.equal(one, other) for one, other in zip(read, parts, strict=True))
    assert all(tensor.storage_offset() == 0 and min(tensor.stride()) > 0 for tensor in read)
    assert read[0].stride() == whole.stride() and read[3].stride() == whole.t().stride()
    memories = [tensor.untyped_storage() for tensor in read]
    assert len({memory.data_ptr() for memory in memories}) == len(read)
    assert [memory.nbytes() for memory in memories] == [part.numel() * part.element_size() for part in parts]


def test_stored_tensors_are_copied_into_the_weights(trained: Path) -> None:
    """torch would assign them, with their own type and memory, where the checkpoint asks for it."""
    shutil.copytree(trained, "run")
    file = Path("run/checkpoints/last.ckpt")
    checkpoint = torch.load(file, weights_only=True)
    for layer in (weights := checkpoint["state_dict"])._metadata.values():
        layer["assign_to_params_buffers"] = True
    name = next(name for name in weights if name.endswith("weight"))
    weights[name] = torch.full((1,), 3.25, dtype=torch.float64).expand(weights[name].shape)
    torch.save(checkpoint, file)
    weight = load_run("run", "last")[2].state_dict()[name]
    assert weight.dtype == torch.float32 and weight.is_contiguous() and (weight == 3.25).all()


@pytest.mark.parametrize(
    "tensor",
    [
        torch.eye(3).to_sparse(),
        torch.eye(3).to_sparse_csr(),
        torch.empty(3, device="meta"),
    ],
    ids=["sparse", "sparse rows", "meta"],
)
def test_tensor_of_another_kind_is_refused(tensor: torch.Tensor, trained: Path) -> None:
    """An optimizer may take the numbers of a sparse one for places in memory."""
    shutil.copytree(trained, "run")
    file = Path("run/checkpoints/last.ckpt")
    edit_checkpoint(file, "optimizer_states", 0, "state", 0, "exp_avg", value=tensor)
    with pytest.raises(ValueError, match="it holds a tensor of another kind"):
        load_checkpoint(file)


def test_states_of_other_weights_are_not_given_to_a_fused_optimizer(trained: Path) -> None:
    shutil.copytree(trained, "run")
    file = Path("run/checkpoints/last.ckpt")
    numbers = torch.load(file, weights_only=True)["optimizer_states"][0]["param_groups"][0]["params"]
    edit_checkpoint(file, "optimizer_states", 0, "param_groups", 0, "params", value=numbers[::-1])
    with pytest.raises(ValueError, match="resume: exp_avg of the optimizer in the checkpoint has not the shape of its"):
        train.train_config(compose("resume=run", "trainer.max_epochs=2", "logger=none"), Path("run"))


@pytest.mark.parametrize(
    ("length", "position"), [(624, -1), (624, 625), (624, 2 * 10**9), (701, 700), (624, None), (624, "1")]
)
def test_position_outside_of_the_state_of_numpy_is_refused(length: int, position: Any) -> None:
    """numpy would read memory that is not its own."""
    state = get_random_state(torch.device("cpu"))
    state["numpy"][0] = torch.zeros(length, dtype=torch.int64)
    state["numpy"][1] = position
    with pytest.raises(ValueError, match="the random_state in the checkpoint is none"):
        set_random_state(state, torch.device("cpu"))


@pytest.mark.parametrize(
    ("left", "position"), [(624, 624), (624, 0), (1, 623), (2, 624), (625, 0), (0, 625), (1, 2**40), (-1, 626)]
)
def test_position_outside_of_the_state_of_torch_is_refused(left: int, position: int) -> None:
    """torch would return memory that is not its own."""
    state = get_random_state(torch.device("cpu"))
    kept = bytes(state["torch"].numpy())
    raw = kept[:8] + struct.pack("=i", left) + kept[12:16] + struct.pack("=Q", position) + kept[24:]
    state["torch"] = torch.tensor(list(raw), dtype=torch.uint8)
    with pytest.raises(ValueError, match="the random_state in the checkpoint is none"):
        set_random_state(state, torch.device("cpu"))
    assert bytes(torch.get_rng_state().numpy()) == kept


def test_checkpoint_that_lightning_would_load_in_a_job_of_slurm_is_refused(
    trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would take the place of the one that was named, or of none, and no check would see it."""
    shutil.copytree(trained, "run")
    shutil.copy(trained / "checkpoints/last.ckpt", "run/hpc_ckpt_1.ckpt")
    shutil.copy(trained / "checkpoints/last.ckpt", "hpc_ckpt_3.ckpt")
    before = {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}
    for name, value in {"NTASKS": "1", "PROCID": "0", "JOB_ID": "1", "JOB_NAME": "a", "LOCALID": "0"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    with pytest.raises(ValueError, match=r"^run/hpc_ckpt_1.ckpt is refused: Lightning would load it in a job of SLURM"):
        train.train_config(compose("resume=run", "trainer.max_epochs=2", "logger=none"), Path("run"))
    with pytest.raises(ValueError, match=r"hpc_ckpt_3.ckpt is refused: Lightning would load it in a job of SLURM"):
        evaluate_run("run")
    assert {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()} == before


def test_checkpoints_of_a_run_are_not_replaced_by_ones_that_would_be_refused(trained: Path) -> None:
    shutil.copytree(trained, "run")
    before = {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()}
    profiler = "+trainer.profiler._target_=lightning.pytorch.profilers.AdvancedProfiler"
    with pytest.raises(
        ValueError, match=r"^resume: the checkpoints of this run would be refused then: config\.trainer"
    ):
        train.train_config(compose("resume=run", "trainer.max_epochs=2", "logger=none", profiler), Path("run"))
    assert {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()} == before
