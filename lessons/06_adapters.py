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
# # Adapters
#
# **The question.** Must old weights be changed at all? Can a model learn a task by small new layers, put in between,
# while everything it had stays as it was?
#
# An adapter narrows the $d$ numbers of a position to $R$, applies a nonlinearity, and widens again; a residual connection
# carries the input past it:
#
# $$\text{adapter}(h) = h + f(h\, W_{down} + b_{down})\, W_{up} + b_{up}, \qquad W_{down} \in \mathbb{R}^{d \times R},\quad
# W_{up} \in \mathbb{R}^{R \times d} .$$

# %%
import time

import matplotlib.pyplot as plt
import numpy as np

import minipeft as mp
from minipeft.data import collate, encode_examples, load_task
from minipeft.models import load_tokenizer
from minipeft.peft import AdapterConfig, HeadConfig, get_peft_model
from minipeft.report.lesson import begin
from minipeft.training import Trainer, TrainingConfig, evaluate

lesson = begin("06_adapters")
task, tokenizer = load_task("sarcasm"), load_tokenizer("minilm")
train_rows = encode_examples(tokenizer, task.head("train", lesson.pick(640, 32)), max_length=64)
test_rows = encode_examples(tokenizer, task.head("test", lesson.pick(400, 32)), max_length=64)
batch = collate(test_rows, range(lesson.pick(16, 4)), tokenizer.pad_id)


def model_with(config):
    mp.seed(0)
    return get_peft_model(mp.load_model("minilm", labels=task.labels, dropout=0.0), config)


def logits(m):
    with mp.no_grad():
        return m(batch.input_ids, batch.attention_mask, batch.token_type_ids).numpy()


# %% [markdown]
# ## 1. Where they go, and how many parameters they are
#
# Houlsby et al. put one after attention and one after the feed-forward part of every block; Pfeiffer et al. keep the
# second alone; a parallel adapter reads what the feed-forward part reads. $W_{up}$ and the biases start at zero, so
# each adapter starts as $h + 0$: the model begins as the pre-trained one. One adapter has $2dR + R + d$ parameters.

# %%
starts, counts = {}, {}
for placement in ("houlsby", "pfeiffer", "parallel"):
    m = model_with(AdapterConfig(bottleneck=16, placement=placement))
    with m.disable_adapter():
        base = logits(m)
    starts[placement] = np.array_equal(logits(m), base)
    counts[placement] = m.count_parameters().method
    print(f"{placement:9} {counts[placement]:7,} parameters; starts at the base, to the last bit: {starts[placement]}")

# %% [markdown]
# ## 2. How narrow may they be?
#
# The classifier alone is the floor: nothing inside the model learns. Then adapters of a few widths.

# %%
runs = {"head": (HeadConfig(), 5e-3)}
runs |= {f"R = {R}": (AdapterConfig(bottleneck=R), 1e-3) for R in lesson.pick((2, 16, 64), (4,))}
models, accuracy, trained = {}, {}, {}
for name, (config, lr) in runs.items():
    m = model_with(config)
    frozen = {n: p.numpy().copy() for n, p in m.named_parameters() if not p.requires_grad}
    Trainer(m, train_rows, tokenizer.pad_id, TrainingConfig(lr=lr, epochs=lesson.pick(3, 2))).run()
    untouched = all(np.array_equal(p.numpy(), frozen[n]) for n, p in m.named_parameters() if n in frozen)
    accuracy[name] = 100 * evaluate(m, test_rows, tokenizer.pad_id).accuracy
    trained[name], models[name] = m.count_parameters().trainable, m
    print(f"{name:7} {trained[name]:8,} trained, accuracy {accuracy[name]:.1f} %, old weights untouched: {untouched}")

figure, axes = plt.subplots(figsize=(6, 3.6), layout="constrained")
for name, look in zip(runs, ("P", "s", "s", "s"), strict=False):
    axes.semilogx(trained[name], accuracy[name], look, color="#7F7F7F" if name == "head" else "#D55E00", markersize=9)
    axes.annotate(name, (trained[name], accuracy[name]), xytext=(0, 9), textcoords="offset points", ha="center")
axes.set(xlabel="Trained parameters", ylabel="Test accuracy (%)", title="Adapters of a few widths, and the head alone")
axes.margins(x=0.15, y=0.25)
lesson.save(figure, "accuracy_by_width")

# %% [markdown]
# ## 3. Which adapters matter?
#
# Every adapter can be left out again after training. We leave out those of one block, then those of the lowest one, two,
# three blocks, and so on, and see what the model still knows.

# %%
m = models[lesson.pick("R = 16", "R = 4")]
blocks = m.model.blocks


def accuracy_without(left_out):
    for i, block in enumerate(blocks):
        block.enabled = i not in left_out
    result = 100 * evaluate(m, test_rows, tokenizer.pad_id).accuracy
    for block in blocks:
        block.enabled = True
    return result


whole = accuracy_without(())
which = lesson.pick(range(len(blocks)), (0, len(blocks) - 1))
single = [accuracy_without({i}) for i in which]
lowest = [accuracy_without(range(i + 1)) for i in which]
print(f"all adapters: {whole:.1f} %; without one block's: {', '.join(f'{a:.1f}' for a in single)}")
print(f"without those of blocks up to it: {', '.join(f'{a:.1f}' for a in lowest)}")

figure, axes = plt.subplots(figsize=(6, 3.6), layout="constrained")
axes.axhline(whole, color="#333333", linewidth=1, linestyle="--", label="with all adapters")
axes.plot(which, single, "s", color="#D55E00", markersize=8, label="without those of this block")
axes.plot(which, lowest, "o-", color="#0072B2", label="without those of this block and all below")
axes.set(xlabel="Block", ylabel="Test accuracy (%)", title="Leaving adapters out")
axes.legend(loc="lower left")
lesson.save(figure, "leaving_adapters_out")

# %% [markdown]
# ## 4. What they cost when the model is used
#
# $f$ is not linear, so an adapter cannot be added into a matrix as LoRA can: it stays, and every pass goes through it.


# %%
def milliseconds(m):
    times = []
    for _ in range(lesson.pick(30, 9)):
        began = time.perf_counter()
        logits(m)
        times.append(time.perf_counter() - began)
    return 1000 * float(np.median(times))


with_adapters = milliseconds(m)
with m.disable_adapter():
    without = milliseconds(m)
print(f"a pass over {len(batch)} headlines: {with_adapters:.1f} ms with adapters, {without:.1f} ms without")
try:
    m.merge_adapter()
    merged = True
except mp.UserError as error:
    merged = False
    print(error)

# %% [markdown]
# ## What we found
#
# Each claim is checked on what was just computed.

# %%
# Every placement starts at the base; Houlsby's has two adapters a block, of 2dR + R + d parameters each.
d, R, L = 384, 16, 6
assert all(starts.values())
assert counts["houlsby"] == 2 * L * (2 * d * R + R + d) == 2 * counts["pfeiffer"]
assert counts["parallel"] == counts["pfeiffer"]
# Not one bit of an old weight changes.
assert untouched
# An adapter cannot be merged.
assert not merged
if not lesson.fast:
    # Adapters find what the frozen features do not show to a classifier.
    assert accuracy["R = 16"] > accuracy["head"] + 2
    # Those of one block can be missed, most often; all of them cannot.
    assert np.mean(single) > lowest[-1] + 2

# %% [markdown]
# ## Exercises
#
# 1. Start $W_{up}$ at random in place of zero (`models[...].model.blocks[0].mlp_adapter.up.weight`). How large may it be
#    before training from there is worse?
# 2. Compare `placement="pfeiffer"` with bottleneck 32 and `"houlsby"` with bottleneck 16: nearly the same number of
#    parameters. Which learns better, which is faster?
# 3. Train adapters for two tasks, `sarcasm` and `tweets`, and save each with `save_pretrained`. How large is each file
#    beside the model? Load one after the other onto the same base with `PeftModel.from_pretrained`.
#
# ## Sources
#
# - Houlsby et al., *Parameter-Efficient Transfer Learning for NLP*, arXiv 1902.00751: section 2.1 (the layer and its
#   start), 3.6 and figure 6 (leaving adapters out).
# - Pfeiffer et al., *AdapterFusion*, arXiv 2005.00247; He et al., *Towards a Unified View of Parameter-Efficient Transfer
#   Learning*, arXiv 2110.04366.
# - The code: `minipeft/peft/adapter.py`.
