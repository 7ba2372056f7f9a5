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
# # Side by side
#
# **The question.** One model, one task, every method: what does each buy for its parameters, its memory and its time?
#
# The lessons before took the methods one at a time. `minipeft compare` runs them all on the same rows, in the same order,
# with the same start, and writes one row of results for each. Here we call it from Python and read what it wrote.

# %%
import matplotlib.pyplot as plt
import numpy as np

from minipeft.cost.count import count
from minipeft.cost.presets import read_architecture
from minipeft.experiments.compare import Settings, compare
from minipeft.experiments.methods import parse_methods
from minipeft.peft import AdapterConfig, FullConfig, LoraConfig, TopKConfig
from minipeft.report.lesson import begin
from minipeft.report.page import write_page
from minipeft.report.plots import accuracy_vs_parameters
from minipeft.report.style import family_looks
from minipeft.report.summary import MEMORY, read_results, summarise

lesson = begin("09_side_by_side")

# %% [markdown]
# ## 1. The run
#
# The names are those of the command line: `topk:2` trains the two top blocks, `lora:8` has rank 8. Learning rates are
# each family's own, since a rate that suits full fine-tuning is ten times too low for LoRA: a fair comparison gives
# each method its best, and the same rows and steps. The run folder remembers what is finished: stop this script, start
# it again, and it goes on where it was.

# %%
methods = parse_methods(
    lesson.pick("head,full,topk:1,topk:2,adapter:16,lora:1,lora:8,intrinsic:300", "head,topk:1,lora:2")
)
settings = Settings(
    train_size=lesson.pick(512, 32),
    test_size=lesson.pick(240, 32),
    epochs=lesson.pick(3, 1),
    batch_size=lesson.pick(32, 8),
    max_length=lesson.pick(64, 32),
)
run = lesson.out / lesson.pick("run", "run-fast")
cells = summarise(read_results(compare(settings, methods, seeds=1, out=run)))
for cell in cells:
    mean = cell.mean
    print(
        f"{cell.label:26} {mean['trainable_params']:12,.0f} trained, accuracy {100 * mean['accuracy']:.1f} %, "
        f"{mean['step_ms']:6.0f} ms a step, {sum(mean[part] for part in MEMORY.values()):6.1f} MB"
    )
print(f"to hover over and to sort: {write_page(run).name}")

# %% [markdown]
# ## 2. Accuracy against parameters
#
# Mind the head. MiniLM's pooler and the new classifier, 148,610 parameters, are trained by every method but `head`, and
# the smallest methods are little more than that. A count that leaves it out makes LoRA of rank 1 look ten times
# smaller.

# %%
figure = accuracy_vs_parameters(cells)
lesson.save(figure, "accuracy_against_parameters")
figure

# %% [markdown]
# ## 3. Parameters are not the price
#
# What is trained is what must be saved, and what AdamW needs two more numbers for. The time of a step and the
# activations are another matter: LoRA's gradient goes all the way down through the frozen blocks, since its lowest
# matrices are in the lowest block. Only top-K stops it. The work can be counted, too: a forward pass is one matrix
# product a layer; a backward pass one more for the gradient that goes on down, and one more for a weight that is
# trained.

# %%
looks = family_looks(cell.method for cell in cells)
parts = (
    ("Step time (ms)", ("step_ms",)),
    ("Activations (MB)", ("activation_mb",)),
    ("Saved for each task (MB)", ("saved_mb",)),
)
figure, panels = plt.subplots(1, 3, figsize=(10, 3.6), layout="constrained", sharey=True)
for (title, names), axes in zip(parts, panels, strict=True):
    values = [sum(cell.mean[name] for name in names) for cell in cells]
    axes.barh([cell.label for cell in cells], values, color=[looks[cell.method].colour for cell in cells])
    axes.set_title(title)
    axes.grid(visible=False, axis="y")
    axes.bar_label(
        axes.containers[0],
        [f"{value:,.0f}" if value >= 100 else f"{value:.3g}" for value in values],
        padding=3,
        fontsize=8,
    )
    axes.margins(x=0.2)
panels[0].invert_yaxis()
lesson.save(figure, "the_price")

ratio = {}
for cell in cells:
    ratio[cell.method, cell.setting] = cell.mean["backward_gflop"] / cell.mean["forward_gflop"]
    print(f"{cell.label:26} backward work is {ratio[cell.method, cell.setting]:.2f} of the forward work")

# %% [markdown]
# ## 4. The same, at the size of GPT-3
#
# Parameters, memory and work follow from the shapes alone, so they can be counted without a weight in memory, by the very
# code that trains. AdamW's two moments and the gradient are what makes full fine-tuning of 175 billion parameters so
# expensive; activations are not counted here. (LoRA's file is twice as large as what is trained: PEFT keeps the pairs of
# the query and the value in one, as GPT's files keep their weights.)

# %%
gpt3 = read_architecture("gpt3-175b")
large = {}
for name, config in (
    ("full", FullConfig()),
    ("top 1 of 96", TopKConfig(k=1)),
    ("adapters, R = 16", AdapterConfig(bottleneck=16)),
    ("LoRA, r = 4", LoraConfig(r=4)),
):
    large[name] = counted = count(gpt3, config)
    state, saved = (counted.gradient + counted.optimizer) / 1e9, counted.saved / 1e6
    print(f"{name:17} {counted.parameters.method:15,} trained; gradient, m, v {state:7.1f} GB; saved {saved:11,.1f} MB")

# %% [markdown]
# ## What we found
#
# Each claim is checked on what was just computed.

# %%
by_name = {(cell.method, cell.setting): cell.mean for cell in cells}
head, top = by_name["head", ""], by_name["topk", "1"]
# The backward work: with the head alone nearly none; with the top block, of which only the first position is read, little.
assert ratio["head", ""] < 0.01 < ratio["topk", "1"] < 0.3
# LoRA keeps much more than top-1 for its backward pass, with a tenth of the parameters.
lora = next(mean for (method, _), mean in by_name.items() if method == "lora")
assert lora["activation_mb"] > 2 * top["activation_mb"] and lora["trainable_params"] < top["trainable_params"] / 5
# GPT-3's LoRA of rank 4 is 18.9 million numbers, a ten-thousandth of the model (table 2 of the paper says 18.8).
assert large["LoRA, r = 4"].parameters.method == 18_874_368
assert large["full"].optimizer > 9000 * large["LoRA, r = 4"].optimizer
if not lesson.fast:
    full, r8 = by_name["full", ""], by_name["lora", "8"]
    assert 1.8 < ratio["full", ""] < 2.1 and ratio["lora", "8"] < 1.4
    # Full fine-tuning is far above the head alone. LoRA of rank 8 fits the training rows better than of rank 1, and that
    # better than the head.
    assert full["accuracy"] > head["accuracy"] + 0.05
    fit = {(c.method, c.setting): np.mean([loss for _, loss in c.curves[0][-10:]]) for c in cells}
    assert fit["lora", "8"] < fit["lora", "1"] < fit["head", ""]
    # Adapters and LoRA save a hundredth of what full fine-tuning saves.
    assert r8["saved_mb"] < full["saved_mb"] / 50

# %% [markdown]
# ## Exercises
#
# 1. Run it with three seeds (`seeds=3`). Which differences of one seed are still there, and which were noise?
# 2. Give every method the same wall-clock time instead of the same number of epochs. Who wins now?
# 3. Add a method of your own (`tests/peft/test_own_method.py` has one in a page), for example one that trains all biases
#    (BitFit), and find its place in the figure.
#
# ## Sources
#
# - Hu et al., *LoRA*, arXiv 2106.09685: figure 2 (accuracy against parameters), table 2 and section F.1 (how they count).
# - Houlsby et al., arXiv 1902.00751: figures 1 and 3. He et al., arXiv 2110.04366: methods in one frame.
# - The code: `minipeft/experiments/compare.py`, `minipeft/cost/count.py`.
