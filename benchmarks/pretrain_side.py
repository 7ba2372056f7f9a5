"""One side of `benchmarks.pretrain_job`: `python -m benchmarks.pretrain_side ours '{"epochs": 1}'` prints a line of JSON.

What comes before the first step, tokenizer, windows and starting weights, is ours on both sides, and not timed.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from typing import Any

from benchmarks.cases import CLIP, threads
from minipeft.backend import random, set_backend
from minipeft.data import PackedTokens, TokenRows
from minipeft.data.bpe import train_bpe
from minipeft.data.corpus import encode_documents, load_corpus
from minipeft.data.token_rows import windows
from minipeft.experiments.pretrain import PretrainSettings
from minipeft.models import Pretrained
from minipeft.models.fresh import fresh_model
from minipeft.optim.schedule import cosine

WARMUP = 0.05


def prepare(given: PretrainSettings) -> tuple[Pretrained, PackedTokens, TokenRows]:
    """The model at its first day, the windows to train on, and the held-out ones."""
    set_backend(given.backend)
    random.seed(given.seed)
    corpus = load_corpus(given.corpus, progress=False)
    tokenizer = train_bpe([line for text in corpus.train for line in text.splitlines(True)], given.vocab_size)
    train = PackedTokens(encode_documents(tokenizer, corpus.train), given.context)
    held_out = windows(encode_documents(tokenizer, corpus.held_out), given.context)
    model = fresh_model(given.style, tokenizer, given.d_model, given.layers, given.heads, given.context)
    return model, train, held_out


def ours(given: PretrainSettings) -> dict[str, Any]:
    """Our trainer."""
    from minipeft.training import Trainer, TrainingConfig, evaluate_tokens

    model, train, held_out = prepare(given)
    config = TrainingConfig(
        given.lr, given.epochs, given.batch_size, given.weight_decay, WARMUP, "cosine", CLIP, threads(), 0.0
    )
    result = Trainer(model, train, 0, config).run()
    loss = evaluate_tokens(model, held_out, 0, workers=threads()).loss
    return {"seconds": result.seconds, "step_ms": result.step_ms, "held_out_loss": loss, "losses": result.losses}


def peer(given: PretrainSettings) -> dict[str, Any]:
    """The same in torch: transformers' model, fused AdamW, SDPA."""
    import torch
    import torch.nn.functional as F
    from transformers import AutoModelForCausalLM

    start, train, held_out = prepare(given)
    torch.set_num_threads(threads())
    with tempfile.TemporaryDirectory() as folder:
        start.save_pretrained(folder)
        model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="sdpa", use_cache=False).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=given.lr, weight_decay=given.weight_decay, fused=True)
    steps = given.epochs * -(-len(train) // given.batch_size)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: cosine(step, steps, round(WARMUP * steps)))
    losses, times = [], []
    began = time.perf_counter()
    for epoch in range(given.epochs):
        for indices in train.order(given.batch_size, random.generator("data", epoch)):
            step_began = time.perf_counter()
            batch = train.batch(indices)
            logits = model(input_ids=torch.from_numpy(batch.input_ids).long()).logits
            loss = F.cross_entropy(logits.flatten(0, 1), torch.from_numpy(batch.labels).long().flatten())
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
            times.append(time.perf_counter() - step_began)
    seconds = time.perf_counter() - began
    model.eval()
    nats = 0.0
    with torch.no_grad():
        for ids, labels in zip(held_out.ids, held_out.labels, strict=True):
            logits = model(input_ids=torch.from_numpy(ids).long()[None]).logits[0]
            nats += F.cross_entropy(logits, torch.from_numpy(labels).long(), reduction="sum").item()
    return {
        "seconds": seconds,
        "step_ms": 1000 * statistics.median(times),
        "held_out_loss": nats / held_out.targets(range(len(held_out))),
        "losses": losses,
    }


if __name__ == "__main__":
    print(json.dumps({"ours": ours, "peer": peer}[sys.argv[1]](PretrainSettings(**json.loads(sys.argv[2])))))
