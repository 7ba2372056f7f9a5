# ---
# jupyter:
#   jupytext:
#     formats: py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Top-K freezing
#
# **The question.** If only the K blocks nearest to the output are trained, where does the gradient stop, and what does
# that save?
#
# A model of $L$ blocks is a chain, $x_0 \to x_1 \to \dots \to x_L \to loss$. The gradient comes back along it, from
# $\partial loss/\partial x_L$ to $\partial loss/\partial x_{L-1}$ and so on; block $l$ needs the one that arrives at it
# for its own weights, and passes the next one down. Below the lowest trained block nobody needs it, so the chain ends
# there. We walk it by hand, one block at a time, and measure.

# %%
import time

import matplotlib.pyplot as plt
import numpy as np

import minipeft as mp
from minipeft.cost import activation_bytes
from minipeft.data import collate, encode_examples, load_task
from minipeft.models import load_tokenizer
from minipeft.peft import FullConfig, TopKConfig, get_peft_model
from minipeft.report.lesson import begin
from minipeft.training import Trainer, TrainingConfig, evaluate

lesson = begin("05_top_k_freezing")
task, tokenizer = load_task("sarcasm"), load_tokenizer("minilm")
train_rows = encode_examples(tokenizer, task.head("train", lesson.pick(640, 32)), max_length=64)
test_rows = encode_examples(tokenizer, task.head("test", lesson.pick(600, 32)), max_length=64)
batch = collate(train_rows, range(lesson.pick(32, 4)), tokenizer.pad_id)


def model_with(config):
    mp.seed(0)
    return get_peft_model(mp.load_model("minilm", labels=task.labels, dropout=0.0), config)


# %% [markdown]
# ## 1. The walk
#
# Each part of the model is a function of what the part before it gave. We cut the tape between the parts: what enters a
# part is a new leaf, which asks for a gradient only if something below it is trained. The backward pass then goes part by
# part, and hands each leaf's gradient to the part below as its $\partial loss/\partial x$. This is what the tape does
# anyway; only now there is a place to stand and measure.


# %%
def parts_of(model):
    """(name, function, parameters) of each part, from the words up to the loss."""
    yield "embed", lambda _: model.embed(batch.input_ids, batch.token_type_ids), list(model.embed.parameters())
    for i, block in enumerate(model.blocks):
        yield f"block {i}", lambda x, block=block: block(x, batch.attention_mask), list(block.parameters())
    loss = lambda x: mp.functional.cross_entropy(model.head(x), batch.labels)
    yield "head", loss, list(model.head.parameters())


def walk(m):
    """One training step, a part at a time: name -> what it costs and how long its gradient is."""
    rows, passes, entry = {}, [], None
    for name, function, parameters in parts_of(m.model):
        began = time.perf_counter()
        out = function(entry)
        forward = 1000 * (time.perf_counter() - began)
        rows[name] = {"forward ms": forward, "saved MB": activation_bytes(out, m) / 1e6}
        passes.append((name, entry, out, parameters))
        entry = mp.Tensor(out.data, requires_grad=out.requires_grad)
    gradient = None  # the loss is a number: its gradient is 1
    for name, entry, out, parameters in reversed(passes):
        began = time.perf_counter()
        if out.requires_grad:
            out.backward(gradient)
        rows[name]["backward ms"] = 1000 * (time.perf_counter() - began)
        squares = [float((p.grad**2).sum()) for p in parameters if p.grad is not None]
        rows[name]["gradient norm"] = sum(squares) ** 0.5
        gradient = entry.grad if entry is not None else None
    return rows


def median_walk(config):
    """The median of a few walks with the same model."""
    m, walks = model_with(config), []
    for _ in range(lesson.pick(9, 2)):
        for p in m.parameters():
            p.grad = None
        walks.append(walk(m))
    return {
        part: {what: float(np.median([w[part][what] for w in walks])) for what in walks[0][part]} for part in walks[0]
    }


settings = {"K = 1": TopKConfig(k=1), "K = 3": TopKConfig(k=3), "full": FullConfig()}
walks = {name: median_walk(config) for name, config in settings.items()}
for name, rows in walks.items():
    print(f"{name}   part, gradient norm, saved MB, forward ms, backward ms")
    for part, row in reversed(rows.items()):
        numbers = (row["gradient norm"], row["saved MB"], row["forward ms"], row["backward ms"])
        print(f"  {part:9}", *(f"{number:9.3f}" for number in numbers))

# %%
measures = ("gradient norm", "saved MB", "backward ms")
figure, panels = plt.subplots(3, 3, figsize=(8.5, 7), sharey=True, sharex="col", layout="constrained")
for (name, rows), line, colour in zip(walks.items(), panels, ("#56B4E9", "#0072B2", "#333333"), strict=True):
    for measure, axes in zip(measures, line, strict=True):
        values = [row[measure] for row in rows.values()]
        axes.barh(list(rows), values, color=colour)
        axes.grid(visible=False, axis="y")
        stopped = [place for place, value in enumerate(values) if rows[list(rows)[place]]["saved MB"] == 0]
        if stopped:
            axes.axhspan(-0.5, max(stopped) + 0.5, facecolor="none", edgecolor="#cccccc", hatch="///", linewidth=0)
    line[0].set_ylabel(name, fontweight="bold")
for measure, axes in zip(measures, panels[0], strict=True):
    axes.set_title(measure[0].upper() + measure[1:])
figure.suptitle("One training step of MiniLM, part by part; hatched: the gradient does not come here")
lesson.save(figure, "where_the_gradient_stops")

# %% [markdown]
# ## 2. The same gradient
#
# Freezing leaves the forward pass as it was, so the loss is the same number, and the gradient of what is still trained is
# the same too: it came from above, and above nothing has changed. Top-K does not compute another gradient. It computes
# less of it.

# %%
gradients = {}
for name, config in settings.items():
    m = model_with(config)
    logits = m(batch.input_ids, batch.attention_mask, batch.token_type_ids)
    mp.functional.cross_entropy(logits, batch.labels).backward()
    gradients[name] = {n: p.grad for n, p in m.trainable_parameters().items()}
shared = gradients["K = 1"].keys()
same = all(np.allclose(gradients["K = 1"][n], gradients["full"][n], rtol=1e-4, atol=1e-7) for n in shared)
print(f"{len(shared)} tensors are trained by K = 1; their gradients are those of full fine-tuning: {same}")

# %% [markdown]
# ## 3. What it costs, and what it gives
#
# What enters the lowest trained block never changes either, so it need not be computed again in every epoch: the trainer
# keeps it for all rows (`training/cache.py`), and the forward pass below the cut happens once.

# %%
results = {}
for name, config, lr in (
    *((f"K = {k}", TopKConfig(k=k), 1e-4) for k in lesson.pick((1, 3), (1,))),
    ("full", FullConfig(), 6e-5),
):
    m = model_with(config)
    frozen = {n: p.numpy().copy() for n, p in m.named_parameters() if not p.requires_grad}
    result = Trainer(m, train_rows, tokenizer.pad_id, TrainingConfig(lr=lr, epochs=lesson.pick(3, 2))).run()
    untouched = all(np.array_equal(p.numpy(), frozen[n]) for n, p in m.named_parameters() if n in frozen)
    score = evaluate(m, test_rows, tokenizer.pad_id)
    results[name] = (m.count_parameters().trainable / 1e6, result.step_ms, 100 * score.accuracy, untouched)
    print(
        f"{name:6} {results[name][0]:5.2f} M trained, {result.step_ms:5.0f} ms a step, accuracy {results[name][2]:.1f} %"
    )

figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3.4), layout="constrained")
left.bar(list(results), [row[1] for row in results.values()], color="#0072B2")
left.set(title="Time of a step", ylabel="ms")
right.plot(list(results), [row[2] for row in results.values()], "o", color="#0072B2", markersize=9)
right.set(title="Test accuracy", ylabel="%")
right.margins(x=0.2, y=0.3)
for axes in (left, right):
    axes.grid(visible=False, axis="x")
lesson.save(figure, "cost_and_accuracy")

# %% [markdown]
# ## What we found
#
# Each claim is checked on what was just computed.

# %%
for name, trained in (("K = 1", {"block 5", "head"}), ("K = 3", {"block 3", "block 4", "block 5", "head"})):
    for part, row in walks[name].items():
        if part in trained:  # the gradient comes here, and the inputs of the part were kept for it
            assert row["gradient norm"] > 0 and row["saved MB"] > 0
        else:  # below the cut there is no gradient, and not one byte was kept
            assert row["gradient norm"] == 0 and row["saved MB"] == 0
saved = {name: sum(row["saved MB"] for row in rows.values()) for name, rows in walks.items()}
assert saved["K = 1"] < 0.3 * saved["full"] and saved["K = 3"] < 0.65 * saved["full"]
# The gradient of what is trained does not change when the rest is frozen.
assert same
# What is frozen is the same to the last bit after training.
assert all(row[3] for row in results.values())
if not lesson.fast:
    # Fewer blocks, cheaper steps, and on this task a lower accuracy.
    assert results["K = 1"][1] < 0.5 * results["full"][1]
    assert results["full"][2] > results["K = 1"][2] + 3

# %% [markdown]
# ## Exercises
#
# 1. Freeze the top three blocks and train the bottom three instead. What does it cost, and why is the saving gone? (Set
#    `requires_grad` by hand: `TopKConfig` will not do it.)
# 2. Train K = 1 with `cache_mb=0` in its `TrainingConfig`. How much slower is a step? Are the losses the same numbers?
# 3. LoRA on the top block alone also stops the gradient there. Compare its saved bytes with those of K = 1: which arrays
#    does it not need to keep?
#
# ## Sources
#
# - Houlsby et al., *Parameter-Efficient Transfer Learning for NLP*, arXiv 1902.00751, section 3.3: fine-tuning the top K
#   layers beside adapters.
# - Yosinski et al., *How transferable are features in deep neural networks?*, arXiv 1411.1792: lower layers are general.
# - The code: `minipeft/peft/topk.py`, `minipeft/training/cache.py`; `record` in `minipeft/autograd/tensor.py`.
