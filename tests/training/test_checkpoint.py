"""Checkpoints: a run that was stopped, killed or interrupted ends with the bits of one that was not."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import DATA, PAD, bits, logits, tiny_data, tiny_model

import minipeft as mp
from minipeft import UserError
from minipeft.backend import storage
from minipeft.peft import AdapterConfig, FullConfig, HeadConfig, IntrinsicConfig, LoraConfig, TopKConfig, get_peft_model
from minipeft.training import Trainer, TrainingConfig
from minipeft.training.checkpoint import interrupt_between_steps

EVERY_STEP = TrainingConfig(lr=0.01, epochs=3, batch_size=8, checkpoint_seconds=0.0)  # 5 steps an epoch
EPOCHS_ONLY = TrainingConfig(lr=0.01, epochs=3, batch_size=8, checkpoint_seconds=1e9)
METHODS = {
    "plain": (None, 0.1),
    "full": (FullConfig(), 0.1),
    "head": (HeadConfig(), 0.0),
    "topk": (TopKConfig(1, train_embeddings=True), 0.1),
    "adapter": (AdapterConfig(4), 0.1),
    "lora": (LoraConfig(r=2, lora_dropout=0.2), 0.1),
    "did": (IntrinsicConfig(d=40), 0.1),
    "said": (IntrinsicConfig(d=70, structure_aware=True, projection="sparse"), 0.1),
}
every_method = pytest.mark.parametrize(("method", "dropout"), METHODS.values(), ids=METHODS)


class Stopped(Exception):
    """The process ends here."""


def make(
    path: Path | None = None,
    config: TrainingConfig = EVERY_STEP,
    method: Any = None,
    dropout: float = 0.1,
    stop: int | None = None,
    **options: Any,
) -> Trainer:
    """As a fresh process would: the model and the method from the seed, then the trainer."""
    model = tiny_model(dropout=dropout)

    def on_step(step: int, total: int, loss: object) -> None:
        made.seen.append(step)
        if step == stop:
            raise Stopped

    options = {"dataset": DATA, "on_step": on_step, **options}
    made = Trainer(
        get_peft_model(model, method) if method else model, pad_id=PAD, config=config, checkpoint=path, **options
    )
    made.seen = []
    return made


def stopped_at(step: int, path: Path, **options: Any) -> Trainer:
    """A run that broke off in `step`: the last checkpoint is of the step before."""
    made = make(path, stop=step, **options)
    with pytest.raises(Stopped):
        made.run()
    return made


# ---- resuming


@every_method
@pytest.mark.parametrize("stop", [4, 6, 13])  # amid the first, at the start of the second, amid the third epoch
def test_a_resumed_run_gives_the_bits_of_an_uninterrupted_one(
    method: Any, dropout: float, stop: int, tmp_path: Path
) -> None:
    whole = make(None, method=method, dropout=dropout)
    expected = whole.run()
    path = tmp_path / "run.ckpt"
    stopped_at(stop, path, method=method, dropout=dropout)
    resumed = make(path, method=method, dropout=dropout)
    with mp.no_grad():
        resumed.model(*[np.ones((2, 3), dtype=np.int32)] * 2)  # draws dropout masks: they must not matter
    result = resumed.run()
    assert resumed.seen == list(range(stop, 16))  # it went on, and did not start again
    assert bits(resumed.model) == bits(whole.model)
    assert result.losses == expected.losses
    for name, vector in whole.optimizer.state_dict().items():
        assert np.array_equal(vector, resumed.optimizer.state_dict()[name])


@pytest.mark.parametrize("method", [LoraConfig(lora_dropout=0.2), IntrinsicConfig(d=40)], ids=["lora", "did"])
def test_with_two_workers_too(method: Any, tmp_path: Path) -> None:
    config = TrainingConfig(lr=0.01, epochs=3, batch_size=8, workers=2, checkpoint_seconds=0.0)
    whole = make(None, config, method)
    expected = whole.run()
    stopped_at(8, tmp_path / "run.ckpt", config=config, method=method)
    resumed = make(tmp_path / "run.ckpt", config, method)
    assert resumed.run().losses == expected.losses
    assert bits(resumed.model) == bits(whole.model)


def test_a_run_may_be_stopped_again_and_again(tmp_path: Path) -> None:
    whole = make(None)
    expected = whole.run()
    path = tmp_path / "run.ckpt"
    for stop in (2, 3, 7, 11, 14):
        stopped_at(stop, path)
    resumed = make(path)
    assert resumed.run().losses == expected.losses
    assert bits(resumed.model) == bits(whole.model)


def test_writing_checkpoints_changes_nothing(tmp_path: Path) -> None:
    often, never = make(tmp_path / "run.ckpt"), make(None)
    assert often.run().losses == never.run().losses
    assert bits(often.model) == bits(never.model)


def test_the_end_of_each_epoch_is_kept_whatever_the_clock_says(tmp_path: Path) -> None:
    path = tmp_path / "run.ckpt"
    stopped_at(5, path, config=EPOCHS_ONLY)
    assert not path.exists()
    stopped_at(9, path, config=EPOCHS_ONLY)
    resumed = make(path, config=EVERY_STEP)  # how often to write is no part of the run's identity
    resumed.run()
    assert resumed.seen == list(range(6, 16))


def test_a_checkpoint_holds_theta_m_v_and_nothing_of_the_frozen_weights(tmp_path: Path) -> None:
    path = tmp_path / "run.ckpt"
    made = stopped_at(4, path, method=LoraConfig(r=1))
    arrays, _ = storage.read_tensors(path)
    trained = sum(p.numel() for p in made.model.trainable_parameters().values())
    assert {name: array.shape for name, array in arrays.items()} == dict.fromkeys(("theta", "m", "v"), (trained,))


def test_the_seconds_of_all_parts_are_added_up(tmp_path: Path) -> None:
    path = tmp_path / "run.ckpt"
    stopped_at(10, path)
    record = json.loads(storage.read_tensors(path)[1]["minipeft"])
    assert make(path).run().seconds > record["seconds"] > 0


# ---- killed


SCRIPT = """
import sys, time
from pathlib import Path
import numpy as np
from tiny import DATA, PAD, tiny_model
from minipeft.peft import LoraConfig, get_peft_model
from minipeft.training import Trainer, TrainingConfig

folder, pause = Path(sys.argv[1]), float(sys.argv[2])
m = get_peft_model(tiny_model(dropout=0.1), LoraConfig(r=2, lora_dropout=0.1))
config = TrainingConfig(lr=0.01, epochs=8, batch_size=8, checkpoint_seconds=0.0)
Trainer(m, DATA, PAD, config, folder / "run.ckpt", {"pid": "any"}, lambda *_: time.sleep(pause)).run()
np.savez(folder / "end.npz", **m.state_dict())
"""


def start(folder: Path, pause: float) -> subprocess.Popen[bytes]:
    """The script in a process of its own."""
    paths = [str(Path(mp.__file__).parent.parent), str(Path(__file__).parent.parent / "helpers")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    return subprocess.Popen([sys.executable, "-c", SCRIPT, str(folder), str(pause)], env=environment)


def wait_for(condition: Any, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert process.poll() is None, "the process ended too early"
        assert time.monotonic() < deadline
        time.sleep(0.002)


def steps_in(path: Path) -> int:
    return int(json.loads(storage.read_tensors(path)[1]["minipeft"])["step"]) if path.exists() else 0


def test_a_killed_process_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    reference = start(whole, 0)
    rng = np.random.default_rng()
    for wanted in (1, 12):  # at least so many steps, then a moment at random within the next few
        process = start(killed, 0.02)  # 40 steps: there is time left to be killed in
        wait_for(lambda: steps_in(killed / "run.ckpt") >= wanted, process)  # noqa: B023
        time.sleep(rng.uniform(0, 0.04))
        process.kill()
        process.wait()
        assert not (killed / "end.npz").exists(), "it was to be killed before its end"
    last = start(killed, 0)
    assert last.wait(60) == 0
    assert reference.wait(60) == 0
    with np.load(whole / "end.npz") as expected, np.load(killed / "end.npz") as found:
        assert expected.files == found.files
        for name in expected.files:
            assert expected[name].tobytes() == found[name].tobytes(), name


# ---- interrupted


def press_ctrl_c_within(step: int, made: Trainer) -> None:
    """Ctrl-C comes while the model computes, in the step that many steps have gone before."""
    forward = made.model.forward

    def interrupted_forward(*inputs: Any) -> Any:
        if len(made.seen) == step:
            signal.raise_signal(signal.SIGINT)
        return forward(*inputs)

    made.model.forward = interrupted_forward


@pytest.mark.parametrize("config", [EVERY_STEP, EPOCHS_ONLY], ids=["every-step", "epochs-only"])
def test_ctrl_c_within_a_step_ends_the_step_keeps_it_and_stops(config: TrainingConfig, tmp_path: Path) -> None:
    whole = make(None)
    expected = whole.run()
    path = tmp_path / "run.ckpt"
    made, before = make(path, config), signal.getsignal(signal.SIGINT)
    press_ctrl_c_within(6, made)
    with pytest.raises(KeyboardInterrupt):
        made.run()
    assert made.seen == list(range(1, 8))
    assert steps_in(path) == 7
    assert signal.getsignal(signal.SIGINT) is before
    resumed = make(path, config)
    assert resumed.run().losses == expected.losses
    assert resumed.seen[0] == 8
    assert bits(resumed.model) == bits(whole.model)


def test_ctrl_c_within_the_last_step_keeps_it_as_well(tmp_path: Path) -> None:
    made = make(tmp_path / "run.ckpt", EPOCHS_ONLY)
    press_ctrl_c_within(14, made)
    with pytest.raises(KeyboardInterrupt):
        made.run()
    assert made.seen == list(range(1, 16))
    assert steps_in(tmp_path / "run.ckpt") == 15


def test_a_second_ctrl_c_breaks_in_at_once() -> None:
    before = signal.getsignal(signal.SIGINT)
    with interrupt_between_steps() as pressed:
        assert not pressed()
        signal.raise_signal(signal.SIGINT)
        assert pressed()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_without_a_checkpoint_ctrl_c_stops_after_the_step_too() -> None:
    made = make(None)
    press_ctrl_c_within(0, made)
    with pytest.raises(KeyboardInterrupt):
        made.run()
    assert made.seen == [1]


# ---- damaged, or of another run


def refused(path: Path, message: str, **options: Any) -> None:
    """The run is refused with the file's name, the weights are as they were, and the file is left where it was."""
    content = path.read_bytes()
    made = make(path, **options)
    before = bits(made.model)
    with pytest.raises(UserError, match=message) as caught:
        made.run()
    assert str(path) in str(caught.value)
    assert path.read_bytes() == content
    assert bits(made.model) == before
    assert made.seen == []


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """Of a run that stopped in its seventh step."""
    stopped_at(7, tmp_path / "run.ckpt")
    return tmp_path / "run.ckpt"


@pytest.mark.parametrize("part", [0.0, 0.001, 0.02, 0.5, 0.999])
def test_a_checkpoint_cut_short(checkpoint: Path, part: float) -> None:
    content = checkpoint.read_bytes()
    checkpoint.write_bytes(content[: int(part * len(content))])
    refused(checkpoint, "cannot be read")


GARBAGE = {"word": b"garbage", "zeros": bytes(100), "ones": b"\xff" * 100, "json": b'{"step": 3}'}
GARBAGE["noise"] = np.random.default_rng(0).bytes(1000)


@pytest.mark.parametrize("content", GARBAGE.values(), ids=GARBAGE)
def test_garbage_in_the_place_of_a_checkpoint(checkpoint: Path, content: bytes) -> None:
    checkpoint.write_bytes(content)
    refused(checkpoint, "cannot be read")


def metadata_of(checkpoint: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    arrays, metadata = storage.read_tensors(checkpoint)
    return {name: array.copy() for name, array in arrays.items()}, json.loads(metadata["minipeft"])


@pytest.mark.parametrize(
    "metadata", [None, {}, {"minipeft": "{"}, {"minipeft": "[]"}, {"minipeft": "7"}, {"minipeft": "{}"}]
)
def test_a_safetensors_file_that_is_no_checkpoint(checkpoint: Path, metadata: dict[str, str] | None) -> None:
    storage.write_tensors(checkpoint, {"theta": np.zeros(3, dtype=np.float32)}, metadata)
    refused(checkpoint, "cannot be read")


@pytest.mark.parametrize("missing", ["step", "losses", "seconds"])
def test_a_record_without_one_of_its_fields(checkpoint: Path, missing: str) -> None:
    arrays, record = metadata_of(checkpoint)
    del record[missing]
    storage.write_tensors(checkpoint, arrays, {"minipeft": json.dumps(record)})
    refused(checkpoint, missing)


def test_a_checkpoint_with_a_nan_in_it(checkpoint: Path) -> None:
    arrays, record = metadata_of(checkpoint)
    arrays["m"][3] = np.nan
    storage.write_tensors(checkpoint, arrays, {"minipeft": json.dumps(record)})
    refused(checkpoint, "NaN")


@pytest.mark.parametrize(
    "options",
    [
        {"config": TrainingConfig(lr=0.02, epochs=3, batch_size=8)},
        {"config": TrainingConfig(lr=0.01, epochs=4, batch_size=8)},
        {"config": TrainingConfig(lr=0.01, epochs=3, batch_size=4)},
        {"config": TrainingConfig(lr=0.01, epochs=3, batch_size=8, schedule="cosine")},
        {"config": TrainingConfig(lr=0.01, epochs=3, batch_size=8, workers=2)},
        {"method": LoraConfig()},
        {"method": TopKConfig(2)},
        {"identity": {"seed": 1}},
        {"dataset": tiny_data(rows=39)},
    ],
    ids=["lr", "epochs", "batch", "schedule", "workers", "lora", "topk", "identity", "rows"],
)
def test_a_checkpoint_of_other_settings(checkpoint: Path, options: dict[str, Any]) -> None:
    refused(checkpoint, "other settings", **options)


@pytest.mark.parametrize(
    ("before", "after", "seed"),
    [
        (LoraConfig(lora_alpha=8), LoraConfig(lora_alpha=16), 0),
        (IntrinsicConfig(d=40, seed=0), IntrinsicConfig(d=40, seed=1), 0),
        (LoraConfig(), LoraConfig(), 1),
    ],
    ids=["alpha", "seed-of-M", "root-seed"],
)
def test_a_checkpoint_of_the_same_shapes_but_another_run(before: Any, after: Any, seed: int, tmp_path: Path) -> None:
    """Pitfall: alpha not saved."""
    path = tmp_path / "run.ckpt"
    stopped_at(3, path, method=before)
    other = make(path, method=after)
    mp.seed(seed)
    with pytest.raises(UserError, match="other settings"):
        other.run()


def test_an_identity_that_json_writes_in_another_way_is_still_the_same(tmp_path: Path) -> None:
    path, identity = tmp_path / "run.ckpt", {"targets": ("q_proj", "v_proj"), "alpha": 2.0, 1: None}
    stopped_at(3, path, identity=identity)
    resumed = make(path, identity=identity)
    resumed.run()
    assert resumed.seen[0] == 3


def test_a_run_that_diverges_leaves_the_last_good_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "run.ckpt"
    made = make(path)

    def poison(step: int, total: int, loss: object) -> None:
        if step == 4:
            made.model.head.classifier.weight.data[...] = np.nan

    made.on_step = poison
    with pytest.raises(UserError, match="diverged"):
        made.run()
    assert steps_in(path) == 3
    assert all(np.isfinite(array).all() for array in storage.read_tensors(path)[0].values())


def test_the_checkpoint_stays_for_the_caller_to_remove_and_nothing_else_is_left(tmp_path: Path) -> None:
    made = make(tmp_path / "deep" / "run.ckpt")
    made.run()
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["run.ckpt"]
    assert np.isfinite(logits(made.model)).all()
