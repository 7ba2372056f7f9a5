"""Prompt it or tune it? Fine-tuning against in-context learning on 16 examples, in and out of their domain, by model size.

After Mosbach et al., "Few-shot Fine-tuning vs. In-context Learning: A Fair Comparison" (arXiv 2305.16938): both get the
same 16 examples, once for each data seed; what is fine-tuned is the classifier that the pattern makes of the model, in full
or with LoRA, and the checkpoint is the one that is best on validation rows of the domain; each pair of a fine-tuned model
and a prompted one is compared by Welch's t-test over the seeds.

What differs here:

- Models of 0.9 M, 2.2 M and 135 M parameters instead of OPT's 125 M to 30 B; the first two are pre-trained on
  the spot, on the task's training texts of all kinds, without labels.
- One task, the sentiment of tweets to airlines, and one shift, to tweets about technology companies, instead of inference
  and paraphrases.
- The same pattern for both sides, so that fine-tuning starts exactly where zero-shot prompting is.
- 10 epochs with rates of our own instead of 40; the words' rows of the output matrix are trained as a head of their own in
  full fine-tuning, and stay as they are with LoRA.
"""

from __future__ import annotations

import copy
import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from minipeft.backend import random, set_backend
from minipeft.backend.workers import default_workers
from minipeft.data import EncodedSet, Example
from minipeft.data.domains import LABELS, TwoDomains, load_two_domains
from minipeft.data.patterns import Pattern, draw_shots, encode_prompts
from minipeft.errors import UserError
from minipeft.experiments.pretrain import PretrainSettings, load_pretrained_run, pretrain
from minipeft.experiments.results import RunFolder
from minipeft.models import Pretrained, load_model
from minipeft.models.prompting import as_classifier, classify
from minipeft.models.reading import tokenizer_of
from minipeft.peft import FullConfig, LoraConfig, PeftConfig, get_peft_model
from minipeft.training import Trainer, TrainingConfig, evaluate

PATTERN = Pattern("{text}\nSentiment:", ("bad", "good"), most_words=16)
APPROACHES = ("icl", "full", "lora")
TEST_BATCH = 16  # rows; some hundred of them are enough batches for the workers to finish together
COLUMNS = (
    "model",
    "approach",
    "seed",
    "parameters",
    "trained",
    "validation",
    "in_domain",
    "out_of_domain",
    "best_epoch",
    "seconds",
)
# The models that are pre-trained here, if a run asks for them: name -> (width, blocks, heads).
SHAPES = {"tiny": (128, 3, 2), "small": (192, 4, 3)}


@dataclass(frozen=True)
class Settings:
    """What all cells share.

    Attributes:
        models: by rising size: "tiny" and "small" are pre-trained first; others are as `load_model` takes them.
        shots: examples that each seed gives to both sides.
        validation_size: rows in the domain that choose the checkpoint.
        test_size: rows of each test.
        epochs: passes over the examples; every second one is a checkpoint to choose from.
        lr_full: the peak learning rate of full fine-tuning.
        lr_lora: of LoRA, of rank 8 on query and value.
        corpus: what "tiny" and "small" are pre-trained on.
        pretrain_epochs: passes over it.
        backend: where to compute.
        workers: processes that share the batches; the last bits depend on their number.
    """

    models: tuple[str, ...] = ("tiny", "small", "smollm2")
    shots: int = 16
    validation_size: int = 100
    test_size: int = 200
    epochs: int = 10
    lr_full: float = 1e-4
    lr_lora: float = 2e-3
    corpus: str = "tweets"
    pretrain_epochs: int = 2
    backend: str = "numpy"
    workers: int = field(default_factory=default_workers)

    def __post_init__(self) -> None:
        if self.shots < 2 or self.epochs < 1 or self.pretrain_epochs < 1 or self.workers < 1 or not self.models:
            raise UserError("Shots are 2 or more; epochs, pretrain_epochs, workers and models 1 or more.")
        if len(set(self.models)) < len(self.models):
            raise UserError(f"A model is named twice in {', '.join(self.models)}.")


QUICK = {"validation_size": 24, "test_size": 40, "epochs": 4, "pretrain_epochs": 1}


@dataclass(frozen=True)
class Progress:
    """What is being done, `step` of `steps`; how many cells are done, and the row of one that has just been finished."""

    doing: str
    step: int
    steps: int
    cells_done: int
    row: dict[str, Any] | None = None


Listener = Callable[[Progress], None]
Tell = Callable[[int, int], None]  # (steps done, steps in all)


def prompt_vs_finetune(settings: Settings, seeds: int, out: Path, listener: Listener | None = None) -> Path:
    """Run what is missing of every seed × model × approach and write results.csv; returns its path.

    Raises:
        UserError: a setting is wrong, a model is no causal one, or the folder holds another run. What was finished before
            stays.
        KeyboardInterrupt: Ctrl-C; the same call goes on with the cell where it stopped.
    """
    if seeds < 1:
        raise UserError(f"--seeds {seeds}: a run needs 1 seed or more; a test of significance 2 or more.")
    set_backend(settings.backend)
    data = load_two_domains(settings.validation_size, settings.test_size)
    identity = {name: value for name, value in dataclasses.asdict(settings).items() if name != "models"}
    folder = RunFolder(out, identity, {"models": list(settings.models), "seeds": seeds}, COLUMNS, COLUMNS[:3])
    cells = [(model, how, seed) for seed in range(seeds) for model in settings.models for how in APPROACHES]
    done = {(row["model"], row["approach"], row["seed"]) for row in folder.rows()}
    needed = dict.fromkeys(
        model for model, how, seed in cells if (model, how, seed) not in done and model not in SHAPES
    )
    # Loaded once, and copied to be tuned. What cannot be loaded fails before the folder is made.
    bases = {name: load_model(name, task="causal-lm", dropout=0.0) for name in needed}
    folder.begin()
    for cell in cells:
        if cell in done:
            continue
        row = _run_cell(settings, cell, data, bases, out, listener or (lambda progress: None), len(done))
        folder.add(row)
        done.add(cell)
        folder.write_csv(cells)
        if listener is not None:
            listener(Progress("", 1, 1, len(done), row))
    return folder.write_csv(cells)


def _run_cell(
    settings: Settings,
    cell: tuple[str, str, int],
    data: TwoDomains,
    bases: dict[str, Pretrained],
    out: Path,
    listener: Listener,
    done: int,
) -> dict[str, Any]:
    name, approach, seed = cell
    if name not in bases:
        doing = f"pre-training {name}"
        bases[name] = base_model(settings, name, out, lambda step, of: listener(Progress(doing, step, of, done)))
    model = bases[name]
    tell: Tell = lambda step, of: listener(Progress(f"{name} {approach}, seed {seed}", step, of, done))
    parameters = sum(p.numel() for p in model.parameters())
    random.seed(seed)
    shots = draw_shots(data.train, settings.shots, len(LABELS))
    began = time.perf_counter()
    scores: dict[str, Any]
    if approach == "icl":
        found = in_context(model, shots, (data.in_domain, data.out_of_domain), settings.workers, tell)
        scores = {
            "trained": 0,
            "validation": None,
            "best_epoch": None,
            "in_domain": found[0],
            "out_of_domain": found[1],
        }
    else:
        scores = fine_tune(settings, copy.deepcopy(model), approach, shots, data, tell)
    seconds = round(time.perf_counter() - began, 1)
    return {"model": name, "approach": approach, "seed": seed, "parameters": parameters, "seconds": seconds, **scores}


def in_context(
    model: Pretrained, shots: list[Example], tests: tuple[tuple[Example, ...], ...], workers: int, tell: Tell
) -> list[float]:
    """The accuracy on each test when the examples are in the prompt; they are read once for all its rows."""
    rows = [row for test in tests for row in test]
    p = classify(model, PATTERN, rows, shots, on_done=lambda done: tell(done, len(rows)), workers=workers)
    right = iter(
        [row.label == max(range(len(LABELS)), key=classes.__getitem__) for row, classes in zip(rows, p, strict=True)]
    )
    return [sum(next(right) for _ in test) / len(test) for test in tests]


def fine_tune(
    settings: Settings,
    model: Pretrained,
    approach: str,
    shots: list[Example],
    data: TwoDomains,
    tell: Tell,
) -> dict[str, Any]:
    """Fine-tune the pattern's classifier on the examples, take the best checkpoint, and test it."""
    tokenizer = tokenizer_of(model)
    config: PeftConfig = LoraConfig(r=8, lora_alpha=16) if approach == "lora" else FullConfig()
    tuned = get_peft_model(as_classifier(model, PATTERN, LABELS), config)
    if approach == "lora":
        for parameter in model.head.parameters() if model.head is not None else ():
            parameter.requires_grad = False
    train, validation, in_domain, out_of_domain = (
        encode_prompts(tokenizer, PATTERN, rows)
        for rows in (shots, data.validation, data.in_domain, data.out_of_domain)
    )
    best = Best(tuned, validation, tokenizer.pad_id, settings.workers, tell)
    lr = settings.lr_lora if approach == "lora" else settings.lr_full
    training = TrainingConfig(lr=lr, epochs=settings.epochs, batch_size=8, workers=settings.workers, cache_mb=0)
    trainer = Trainer(tuned, train, tokenizer.pad_id, training, on_step=best.on_step)
    best.every = trainer.steps_per_epoch * min(2, settings.epochs)
    trainer.run()
    best.restore()
    tests = [
        evaluate(tuned, rows, tokenizer.pad_id, TEST_BATCH, settings.workers) for rows in (in_domain, out_of_domain)
    ]
    return {
        "trained": tuned.count_parameters().trainable,
        "validation": best.score[0],
        "best_epoch": best.step // trainer.steps_per_epoch,
        "in_domain": tests[0].accuracy,
        "out_of_domain": tests[1].accuracy,
    }


class Best:
    """Looks at the validation rows after every `every` steps and keeps the weights that do best there.

    Equal accuracies are told apart by the loss.
    """

    def __init__(self, model: Any, rows: EncodedSet, pad_id: int, workers: int, tell: Tell) -> None:
        self.model, self.rows, self.pad_id, self.workers, self.tell = model, rows, pad_id, workers, tell
        self.every, self.step = 1, 0
        self.score = (-1.0, 0.0)
        self.kept: list[Any] = []

    def on_step(self, step: int, steps: int, loss: Any) -> None:
        """For the trainer."""
        self.tell(step, steps)
        if step % self.every == 0:
            found = evaluate(self.model, self.rows, self.pad_id, TEST_BATCH, self.workers)
            if (found.accuracy, -found.loss) > self.score:
                self.score, self.step = (found.accuracy, -found.loss), step
                self.kept = [p.data.copy() for p in self.model.trainable_parameters().values()]

    def restore(self) -> None:
        """Put the best weights back."""
        for parameter, data in zip(self.model.trainable_parameters().values(), self.kept, strict=True):
            parameter.data[...] = data


def base_model(settings: Settings, name: str, out: Path, tell: Tell) -> Pretrained:
    """The model of that name in SHAPES, which is pre-trained in OUT/models/NAME if it is not there yet."""
    d_model, layers, heads = SHAPES[name]
    shape = PretrainSettings(
        corpus=settings.corpus,
        vocab_size=2048,
        d_model=d_model,
        layers=layers,
        heads=heads,
        context=768,
        epochs=settings.pretrain_epochs,
        batch_size=4,
        backend=settings.backend,
        workers=settings.workers,
    )
    folder = out / "models" / name
    if not (folder / "results.json").exists():
        pretrain(shape, folder, lambda now: tell(now.step, now.steps))
    return load_pretrained_run(folder)
