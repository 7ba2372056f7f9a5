"""Pre-training: from plain text to a base model, with a tokenizer of its own.

The run folder holds `tokenizer/` (first), `log.jsonl` (loss and held-out loss as they come), `samples.txt`, the checkpoint
while it runs, `kept/step-N/` when asked for, and in the end `model/`, a Hugging Face folder, and `results.json`. A killed
run goes on from its checkpoint to the same bits.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from minipeft.backend import active, random, set_backend
from minipeft.backend.workers import default_workers
from minipeft.data import PackedTokens, Tokenizer, TokenRows
from minipeft.data.bpe import train_bpe
from minipeft.data.corpus import Corpus, encode_documents, load_corpus
from minipeft.data.token_rows import windows
from minipeft.errors import UserError
from minipeft.experiments.results import RunFolder
from minipeft.files import append_line, atomic_write
from minipeft.models import Pretrained, Sampling, generate, load_model
from minipeft.models.fresh import fresh_model
from minipeft.training import Trainer, TrainingConfig, evaluate_tokens

QUICK_TOKENS = 8192  # of the held-out part, from all over it, while training


@dataclass(frozen=True)
class PretrainSettings:
    """What a run of pre-training is a function of.

    Attributes:
        corpus: "shakespeare", a task's name, a .txt file or a folder; several with commas between.
        style: "llama" or "gpt2".
        vocab_size: tokens of the byte-pair tokenizer that is learnt first.
        d_model: width of the residual stream.
        layers: blocks.
        heads: attention heads.
        context: tokens of a window, and the longest that the model will ever read.
        epochs: passes over the text.
        batch_size: windows a step.
        lr: peak learning rate; a warm-up of 5 % and a cosine down to zero.
        weight_decay: of AdamW.
        dropout: probability (gpt2).
        seed: of the start and of the order.
        backend: where to compute.
        workers: processes that share each batch; the last bits depend on their number.
    """

    corpus: str = "shakespeare"
    style: str = "llama"
    vocab_size: int = 1024
    d_model: int = 192
    layers: int = 4
    heads: int = 6
    context: int = 128
    epochs: int = 6
    batch_size: int = 16
    lr: float = 2e-3
    weight_decay: float = 0.1
    dropout: float = 0.0
    seed: int = 0
    backend: str = "numpy"
    workers: int = field(default_factory=default_workers)


@dataclass(frozen=True)
class PretrainProgress:
    """Step `step` of `steps`, with the training loss and the held-out loss (nats a token) and a sample, where known."""

    step: int
    steps: int
    loss: float | None = None
    held_out: float | None = None
    sample: str | None = None


Listener = Callable[[PretrainProgress], None]


def pretrain(settings: PretrainSettings, out: Path, listener: Listener | None = None, keep: int = 0) -> dict[str, Any]:
    """Train a tokenizer and a model, or go on where the folder stands; returns what results.json holds.

    With `keep`, the model is also kept at that many earlier steps, each half of the next: 1/2, 1/4, ... of all.

    Raises:
        UserError: a setting is wrong, the corpus is empty or too small, or `out` holds another run.
        KeyboardInterrupt: Ctrl-C; the same call goes on where it stopped.
    """
    set_backend(settings.backend)
    corpus = load_corpus(settings.corpus)
    random.seed(settings.seed)
    config = TrainingConfig(
        lr=settings.lr,
        epochs=settings.epochs,
        batch_size=settings.batch_size,
        weight_decay=settings.weight_decay,
        warmup=0.05,
        schedule="cosine",
        workers=settings.workers,
        checkpoint_seconds=30.0,
    )
    identity, results = {**dataclasses.asdict(settings), "text": corpus.digest}, out / "results.json"
    if results.exists():
        RunFolder(out, identity, {})
        return dict(json.loads(results.read_text(encoding="utf-8")))
    kept = out / "tokenizer"  # another version of the library might learn another one
    begun = (kept / "tokenizer.json").exists()
    tokenizer = Tokenizer.from_folder(kept) if begun else _learn_tokenizer(corpus, settings.vocab_size)
    train = PackedTokens(encode_documents(tokenizer, corpus.train), settings.context)  # too little text fails here
    RunFolder(out, identity, {}).begin()
    if not begun:
        tokenizer.save_pretrained(kept)
    held_out = windows(encode_documents(tokenizer, corpus.held_out), settings.context)
    model = fresh_model(
        settings.style,
        tokenizer,
        settings.d_model,
        settings.layers,
        settings.heads,
        settings.context,
        settings.dropout,
    )
    watch = _Watch(model, held_out.sample(max(1, QUICK_TOKENS // settings.context)), out, listener)
    trainer = Trainer(model, train, tokenizer.pad_id, config, out / "checkpoint.safetensors", on_step=watch.on_step)
    watch.every = trainer.steps_per_epoch
    watch.kept = {trainer.total >> i for i in range(1, keep + 1)} - {0}
    result = trainer.run()
    model.save_pretrained(out / "model")
    row = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "vocab_size": tokenizer.vocab_size,
        "train_tokens": len(train.tokens),
        "steps": len(result.losses),
        "train_seconds": round(result.seconds, 1),
        "step_ms": round(result.step_ms, 2),
        "tokens_per_second": round(settings.batch_size * settings.context * len(result.losses) / result.seconds),
        **held_out_scores(model, corpus, held_out, settings.workers),
    }
    atomic_write(results, json.dumps(row, indent=2) + "\n")
    (out / "checkpoint.safetensors").unlink(missing_ok=True)
    return row


def held_out_scores(model: Pretrained, corpus: Corpus, rows: TokenRows, workers: int) -> dict[str, float]:
    """The loss in nats a token, the perplexity, and the bits a byte: -log₂ likelihood of the text over its UTF-8 bytes.

    Bits a byte do not depend on how the text is cut into tokens, so models with other tokenizers may be compared. The ends
    of documents are predicted as well, and counted as no bytes.
    """
    assert model.tokenizer is not None
    score = evaluate_tokens(model, rows, model.tokenizer.pad_id, workers=workers)
    size = sum(len(document.encode()) for document in corpus.held_out)
    return {
        "held_out_loss": round(score.loss, 5),
        "held_out_perplexity": round(score.perplexity, 3),
        "bits_per_byte": round(score.nats / math.log(2) / size, 5),
        "held_out_bytes": size,
    }


def load_pretrained_run(out: Path) -> Pretrained:
    """The model of a finished run. Raises UserError when there is none."""
    if not (out / "model" / "config.json").exists():
        raise UserError(f"{out} holds no finished run of `minipeft pretrain`; run the same command again to finish it.")
    return load_model(out / "model", task="causal-lm")


class _Watch:
    """Looks at the run after some of its steps: the loss, and once an epoch the held-out loss and a sample."""

    def __init__(self, model: Pretrained, held_out: TokenRows, out: Path, listener: Listener | None) -> None:
        self.model, self.held_out, self.out, self.listener = model, held_out, out, listener
        self.every = 1
        self.kept: set[int] = set()
        self.losses: list[Any] = []

    def on_step(self, step: int, steps: int, loss: Any) -> None:
        self.losses.append(loss)
        told: dict[str, Any] = {}
        if step % 10 == 0 or step == steps:
            told["loss"] = float(active().to_numpy(active().xp.stack(self.losses)).mean())
            self.losses.clear()
        if step % self.every == 0:
            told["held_out"], told["sample"] = self._look(step)
        if told.keys() & {"loss", "held_out"}:
            kept = {name: round(told[name], 5) for name in ("loss", "held_out") if name in told}
            append_line(self.out / "log.jsonl", json.dumps({"step": step, **kept}))
        if step in self.kept:
            self.model.save_pretrained(self.out / "kept" / f"step-{step}")
        if self.listener is not None:
            self.listener(PretrainProgress(step, steps, **told))

    def _look(self, step: int) -> tuple[float, str]:
        tokenizer = self.model.tokenizer
        assert tokenizer is not None
        loss = evaluate_tokens(self.model, self.held_out, tokenizer.pad_id).loss
        sample = generate(self.model, ["\n"], Sampling(60, temperature=0.8, top_p=0.95))[0].text.strip()
        append_line(self.out / "samples.txt", f"=== step {step}, held-out loss {loss:.3f}\n{sample}\n")
        return loss, sample


def _learn_tokenizer(corpus: Corpus, vocab_size: int) -> Tokenizer:
    return train_bpe([line for text in corpus.train for line in text.splitlines(True)], vocab_size)
