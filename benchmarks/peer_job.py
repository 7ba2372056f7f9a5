"""The job of `minipeft compare`, written with torch, transformers and peft: `python -m benchmarks.peer_job --methods ...`.

The same rows, token numbers, batches, learning rates, schedule, clipping and evaluation; the head starts from another
random draw. What torch and its libraries have is theirs: the model, LoRA, the loss, the optimizer. Prints a line of JSON.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification

from benchmarks.cases import CLIP, WEIGHT_DECAY, threads
from benchmarks.torch_peer import attach
from minipeft.backend import random
from minipeft.data import EncodedSet, bucketed_order, collate, encode_examples, fetch, load_task, sorted_order
from minipeft.data.tokenize import Tokenizer
from minipeft.experiments.methods import parse_methods
from minipeft.optim.schedule import linear

BATCH, EVAL_BATCH, MAX_LENGTH, WARMUP = 32, 32, 64, 0.1  # the defaults of `minipeft compare`


def run(methods: str, task_name: str, train_size: int, test_size: int, epochs: int) -> dict[str, float]:
    """Train and test by each method; the accuracies, by method."""
    torch.set_num_threads(threads())
    folder = fetch("minilm", progress=False)
    tokenizer = Tokenizer.from_folder(folder)
    task = load_task(task_name, progress=False)
    train = encode_examples(tokenizer, task.head("train", train_size), MAX_LENGTH)
    test = encode_examples(tokenizer, task.head("test", test_size), MAX_LENGTH)
    scores = {}
    for spec in parse_methods(methods):
        torch.manual_seed(0)
        random.seed(0)
        base = AutoModelForSequenceClassification.from_pretrained(
            folder,
            num_labels=len(task.labels),
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            attn_implementation="sdpa",
        )
        model = attach(base, "bert", spec.name, "peft" if spec.family == "lora" else "torch")
        fit(model, train, tokenizer.pad_id, spec.lr, epochs)
        scores[spec.name] = accuracy(model, test, tokenizer.pad_id)
    return scores


def fit(model: Any, data: EncodedSet, pad_id: int, lr: float, epochs: int) -> None:
    """AdamW with a linear warm-up and decay, on batches of similar length."""
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=lr, weight_decay=WEIGHT_DECAY, fused=True)
    steps = epochs * -(-len(data) // BATCH)
    warmup = round(WARMUP * steps)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: linear(step, steps, warmup))
    model.train()
    for epoch in range(epochs):
        for rows in bucketed_order(data.lengths, BATCH, random.generator("data", epoch)):
            inputs, labels = tensors(data, rows, pad_id)
            optimizer.zero_grad(set_to_none=True)
            model(**inputs, labels=labels).loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, CLIP)
            optimizer.step()
            schedule.step()


@torch.inference_mode()
def accuracy(model: Any, data: EncodedSet, pad_id: int) -> float:
    """The part of the rows that are classified right."""
    model.eval()
    right = 0
    for rows in sorted_order(data.lengths, EVAL_BATCH):
        inputs, labels = tensors(data, rows, pad_id)
        right += int((model(**inputs).logits.argmax(-1) == labels).sum())
    return right / len(data)


def tensors(data: EncodedSet, rows: Any, pad_id: int) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """A batch as transformers takes it."""
    batch = collate(data, rows, pad_id)
    names = ("input_ids", "attention_mask", "token_type_ids")
    return {n: torch.from_numpy(getattr(batch, n)).long() for n in names}, torch.from_numpy(batch.labels).long()


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="Example: python -m benchmarks.peer_job --methods full,lora:8 --train-size 1000",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--methods", default="full,topk:1,topk:2,adapter:16,lora:1,lora:8")
    parser.add_argument("--task", default="sarcasm")
    parser.add_argument("--train-size", type=int, default=1000)
    parser.add_argument("--test-size", type=int, default=1000)
    parser.add_argument("--epochs", type=int, default=3)
    given = parser.parse_args()
    print(json.dumps(run(given.methods, given.task, given.train_size, given.test_size, given.epochs)))


if __name__ == "__main__":
    main()
