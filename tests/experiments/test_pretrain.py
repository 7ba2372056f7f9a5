"""Pre-training: a base model from text; killed and resumed to the same bits; and texts that cannot be learnt from."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from minipeft.backend import storage
from minipeft.data import Tokenizer
from minipeft.data.corpus import Corpus
from minipeft.data.token_rows import windows
from minipeft.errors import UserError
from minipeft.experiments.pretrain import PretrainSettings, held_out_scores, load_pretrained_run, pretrain
from minipeft.models import load_model
from minipeft.report.language_plots import draw_pretraining, read_log

WORDS = ["the", "cat", "sat", "on", "a", "mat", "dog", "ran", "to", "big", "red", "house", "and", "then", "it", "was"]


def write_text(path: Path, lines: int = 400) -> Path:
    rng = np.random.default_rng(0)
    text = [" ".join(rng.choice(WORDS, size=int(rng.integers(4, 9)))) + "." for _ in range(lines)]
    path.write_text("\n".join(text) + "\n")
    return path


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return write_text(tmp_path_factory.mktemp("corpus") / "cats.txt")


def small(text: Path, **changes) -> PretrainSettings:
    fields = {"vocab_size": 300, "d_model": 16, "layers": 2, "heads": 2, "context": 16, "epochs": 2, "batch_size": 8}
    return PretrainSettings(**{"corpus": str(text), "workers": 1, "lr": 0.01, **fields, **changes})


@pytest.mark.parametrize("style", ["llama", "gpt2"])
def test_from_text_to_a_base_model(style, text, tmp_path):
    told = []
    settings = small(text, style=style, epochs=3, dropout=0.1 if style == "gpt2" else 0.0)
    row = pretrain(settings, tmp_path / "run", told.append)
    assert row["steps"] == told[-1].steps == told[-1].step
    held_out = [now.held_out for now in told if now.held_out is not None]
    assert len(held_out) == 3
    assert row["held_out_loss"] < held_out[0] < math.log(300)
    assert all(now.sample is not None for now in told if now.held_out is not None)
    model = load_pretrained_run(tmp_path / "run")
    assert model.hf_config["model_type"] == style
    assert sum(p.numel() for p in model.parameters()) == row["parameters"]
    assert not (tmp_path / "run" / "checkpoint.safetensors").exists()
    assert pretrain(settings, tmp_path / "run") == row  # finished: nothing is trained again
    paths = draw_pretraining(tmp_path / "run")
    assert all(path.stat().st_size > 5000 for path in paths)
    log = read_log(tmp_path / "run" / "log.jsonl")
    assert [step for step, entry in log.items() if "held_out" in entry] == [row["steps"] * n // 3 for n in (1, 2, 3)]
    assert (tmp_path / "run" / "samples.txt").read_text().count("=== step") == 3


@pytest.mark.parametrize("style", ["llama", "gpt2"])
def test_transformers_loads_the_model_and_its_tokenizer(style, text, tmp_path, torch):
    transformers = pytest.importorskip("transformers")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    pretrain(small(text, style=style, epochs=1), tmp_path / "run")
    folder = tmp_path / "run" / "model"
    ours = load_model(folder, task="causal-lm").eval()
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    ids = transformers.AutoTokenizer.from_pretrained(folder)("the cat sat.")["input_ids"]
    assert ids == ours.tokenizer.ids("the cat sat.")
    with torch.no_grad():
        expected = theirs(torch.tensor([ids])).logits.numpy()
    np.testing.assert_allclose(ours(np.array([ids])).data, expected, atol=1e-4)


def test_the_held_out_score_is_that_of_the_whole_text(text, tmp_path):
    settings = small(text, epochs=1)
    row = pretrain(settings, tmp_path / "run")
    model = load_pretrained_run(tmp_path / "run").eval()
    whole = text.read_text()
    apart = whole[whole.index("\n", round(0.9 * len(whole))) + 1 :]
    ids = np.array([model.tokenizer.eos_id, *model.tokenizer.ids(apart), model.tokenizer.eos_id])
    nats = 0.0
    for at in range(0, len(ids) - 1, settings.context):
        part = ids[at : at + settings.context + 1]
        x = model(part[None, :-1]).data[0].astype("float64")
        nats -= (x - np.log(np.exp(x).sum(1, keepdims=True)))[range(len(part) - 1), part[1:]].sum()
    assert row["held_out_bytes"] == len(apart.encode())
    assert row["bits_per_byte"] == pytest.approx(nats / math.log(2) / len(apart.encode()), rel=1e-4)
    assert row["held_out_loss"] == pytest.approx(nats / (len(ids) - 1), rel=1e-4)
    assert row["held_out_perplexity"] == pytest.approx(math.exp(nats / (len(ids) - 1)), rel=1e-3)
    shorter = held_out_scores(model, Corpus((), ("the cat",)), windows([0, *model.tokenizer.ids("the cat"), 0], 16), 1)
    assert shorter["held_out_bytes"] == 7


def test_earlier_states_are_kept_when_asked_for(text, tmp_path):
    row = pretrain(small(text), tmp_path / "run", keep=3)
    kept = {int(path.name.removeprefix("step-")): path for path in (tmp_path / "run" / "kept").iterdir()}
    assert sorted(kept) == sorted(row["steps"] >> i for i in (1, 2, 3))
    last = load_pretrained_run(tmp_path / "run").state_dict()
    apart = [
        np.linalg.norm(load_model(path, task="causal-lm").state_dict()["embed.word.weight"] - last["embed.word.weight"])
        for _, path in sorted(kept.items())
    ]
    assert apart == sorted(apart, reverse=True)  # the later, the nearer to the end
    assert apart[-1] > 0


# ---- killed and resumed

SCRIPT = """
import sys, time
from pathlib import Path
from test_pretrain import small
from minipeft.experiments.pretrain import pretrain

pretrain(small(Path(sys.argv[1]), epochs=3, style="gpt2", dropout=0.1), Path(sys.argv[2]), lambda now: time.sleep(0.01))
"""


def start(text: Path, run: Path) -> subprocess.Popen:
    here = Path(__file__).parent
    paths = [str(here.parent.parent), str(here), str(here.parent / "helpers")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    return subprocess.Popen([sys.executable, "-c", SCRIPT, str(text), str(run)], env=environment)


def test_a_killed_run_goes_on_to_the_same_bits(text, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    reference, process = start(text, whole), start(text, killed)
    deadline = time.monotonic() + 60
    checkpoint = killed / "checkpoint.safetensors"
    while not checkpoint.exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.005)
    time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (killed / "model").exists(), "it was to be killed before its end"
    done = json.loads(storage.read_tensors(checkpoint)[1]["minipeft"])["step"]
    assert done > 0
    assert start(text, killed).wait(60) == 0
    assert reference.wait(60) == 0
    for name in ("model/model.safetensors", "model/tokenizer.json", "model/config.json"):
        assert (whole / name).read_bytes() == (killed / name).read_bytes(), name
    a, b = (json.loads((run / "results.json").read_text()) for run in (whole, killed))
    assert {name for name in a if a[name] != b[name]} <= {"train_seconds", "step_ms", "tokens_per_second"}
    assert read_log(whole / "log.jsonl").keys() >= read_log(killed / "log.jsonl").keys()
    last = max(step for step, entry in read_log(whole / "log.jsonl").items() if "held_out" in entry)
    assert read_log(whole / "log.jsonl")[last]["held_out"] == read_log(killed / "log.jsonl")[last]["held_out"]


def test_the_tokenizer_of_the_run_is_kept(text, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "minipeft.experiments.pretrain.Trainer.run", lambda self: (_ for _ in ()).throw(KeyboardInterrupt)
    )
    with pytest.raises(KeyboardInterrupt):
        pretrain(small(text), tmp_path / "run")
    monkeypatch.undo()
    kept = tmp_path / "run" / "tokenizer" / "tokenizer.json"
    before = kept.read_bytes()
    pretrain(small(text), tmp_path / "run")
    assert kept.read_bytes() == before
    assert Tokenizer.from_folder(tmp_path / "run" / "model").ids("the cat") == Tokenizer.from_folder(kept.parent).ids(
        "the cat"
    )


# ---- what cannot be


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"corpus": "shakespear"}, "Did you mean 'shakespeare'"),
        ({"corpus": ""}, "No corpus is named"),
        ({"corpus": "missing.txt"}, "missing.txt cannot be read"),
        ({"vocab_size": 200}, "A vocabulary of 200"),
        ({"heads": 3}, "heads divide the width"),
        ({"style": "bert"}, "Unknown style of model 'bert'"),
        ({"context": 100000}, "too few for windows of 100000"),
        ({"context": 0}, "context=0"),
        ({"dropout": 0.1}, "choose the style gpt2"),
        ({"epochs": 0}, "epochs"),
    ],
)
def test_a_wrong_setting_is_an_error(change, says, text, tmp_path):
    with pytest.raises(UserError, match=says):
        pretrain(small(text, **change), tmp_path / "run")
    assert not (tmp_path / "run" / "log.jsonl").exists()


def test_a_text_that_has_changed_is_another_run(text, tmp_path):
    copy = tmp_path / "cats.txt"
    copy.write_text(text.read_text())
    pretrain(small(copy, epochs=1), tmp_path / "run")
    copy.write_text(text.read_text() + "one more line.\n")
    with pytest.raises(UserError, match="holds a run with text="):
        pretrain(small(copy, epochs=1), tmp_path / "run")
