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
# # LoRA
#
# **The question.** Fine-tuning changes every weight matrix $W$ by some $\Delta W$ of the same size. Can $\Delta W$ be a
# product of two thin matrices instead, so that a hundredth of the numbers is trained?
#
# LoRA keeps $W \in \mathbb{R}^{in \times out}$ frozen and computes
#
# $$Y = X W + b + s \cdot X A B, \qquad A \in \mathbb{R}^{in \times r},\ B \in \mathbb{R}^{r \times out},\ s = \alpha / r.$$
#
# Only $A$ and $B$ are trained: $r\,(in + out)$ numbers in place of $in \cdot out$. We look at its three ideas in turn:
# the start at zero, the rank, and the merge.

# %%
import time

import matplotlib.pyplot as plt
import numpy as np

import minipeft as mp
from minipeft.data import collate, encode_examples, load_task
from minipeft.models import load_tokenizer
from minipeft.peft import LoraConfig, get_peft_model
from minipeft.report.lesson import begin
from minipeft.training import Trainer, TrainingConfig, evaluate

lesson = begin("07_lora")
mp.seed(0)
rng = np.random.default_rng(0)

# %% [markdown]
# ## 1. The start at zero
#
# $B$ starts at zero, so $X A B = 0$ and training starts from the pre-trained model exactly. $A$ starts at random. Why not
# both at zero? With $G = \partial L / \partial Y$, the chain rule gives
#
# $$\frac{\partial L}{\partial B} = s\,(X A)^\top G, \qquad \frac{\partial L}{\partial A} = s\, X^\top G\, B^\top .$$
#
# At $B = 0$ the gradient of $A$ is zero and that of $B$ is not: $B$ moves first, and then $A$ can. At $A = B = 0$ both
# are zero, and nothing ever moves.


# %%
def normal(*shape):
    return rng.standard_normal(shape, dtype="float32")


X, W, target = mp.Tensor(normal(5, 6)), mp.Tensor(normal(6, 4)), mp.Tensor(normal(5, 4))
s = 2.0
norms = {}
for start, A0 in (("A random, B zero", normal(6, 2)), ("A zero, B zero", np.zeros((6, 2), "float32"))):
    A, B = mp.Tensor(A0, requires_grad=True), mp.Tensor(np.zeros((2, 4), "float32"), requires_grad=True)
    Y = X @ W + (X @ A @ B) * s
    unchanged = np.array_equal(Y.numpy(), (X @ W).numpy())
    ((Y - target) ** 2).sum().backward()
    norms[start] = [float(np.linalg.norm(t.grad)) for t in (A, B)]
    print(f"{start}: output unchanged: {unchanged}, |dL/dA| = {norms[start][0]:.2f}, |dL/dB| = {norms[start][1]:.2f}")

# %% [markdown]
# ## 2. The rank
#
# $A B$ has rank $r$ at most. How much of a change can it make? Take a change $\Delta W^*$ that we know: a sum of four
# directions of sizes 8, 4, 2 and 1. The best that any matrix of rank $r$ can do is to take the $r$ largest and miss the
# others, $\sqrt{\sum_{i > r} \sigma_i^2}$ (Eckart and Young). Does training $A$ and $B$ get there?

# %%
sizes = np.array([8, 4, 2, 1], "float32")
left, right = np.linalg.qr(normal(40, 4))[0], np.linalg.qr(normal(30, 4))[0]
change = (left * sizes) @ right.T  # (40, 30), its singular values are `sizes`


def train_to(change, r, steps=400):
    """Fit s·AB to a change by AdamW; returns the distance that remains."""
    A, B = mp.nn.Parameter(normal(40, r) / 40**0.5), mp.nn.Parameter(np.zeros((r, 30), "float32"))
    optimizer = mp.optim.AdamW([A, B], weight_decay=0.0)
    for step in range(steps):
        optimizer.zero_grad()
        loss = ((A @ B - change) ** 2).sum()
        loss.backward()
        optimizer.step(0.05 * (1 - step / steps))
    return loss.item() ** 0.5


ranks = range(1, 7)
reached = [train_to(change, r) for r in ranks]
best = [float(np.sqrt((sizes[r:] ** 2).sum())) for r in ranks]
for r, ours, bound in zip(ranks, reached, best, strict=True):
    print(f"r = {r}: distance {ours:.3f}, the best possible {bound:.3f}")

figure, axes = plt.subplots(figsize=(6, 3.6), layout="constrained")
axes.plot(ranks, best, "o--", color="#333333", markersize=9, fillstyle="none", label="best of that rank")
axes.plot(ranks, reached, "D", color="#009E73", label="trained A B")
axes.set(xlabel="Rank r", ylabel="What is missed, ‖AB − ΔW*‖", title="A change of rank 4, by LoRA of rank r")
axes.legend()
lesson.save(figure, "rank_of_a_known_change")

# %% [markdown]
# ## 3. On a real model
#
# MiniLM has 22.7 million parameters. We put LoRA on the query and value matrices of its six blocks and train it to tell
# sarcastic headlines from serious ones, once for each rank. The classifier on top is new and is trained as well.

# %%
task, tokenizer = load_task("sarcasm"), load_tokenizer("minilm")
train_rows = encode_examples(tokenizer, task.head("train", lesson.pick(640, 32)), max_length=64)
test_rows = encode_examples(tokenizer, task.head("test", lesson.pick(600, 32)), max_length=64)
batch = collate(test_rows, range(lesson.pick(16, 4)), tokenizer.pad_id)


def lora_model(r):
    mp.seed(0)
    model = mp.load_model("minilm", labels=task.labels, dropout=0.0)
    return get_peft_model(model, LoraConfig(r=r, lora_alpha=2 * r, target_modules=("q_proj", "v_proj")))


def logits(m):
    with mp.no_grad():
        return m(batch.input_ids, batch.attention_mask, batch.token_type_ids).numpy()


scores, curves = {}, {}
for r in lesson.pick((1, 4, 16), (2,)):
    m = lora_model(r)
    with m.disable_adapter():
        base = logits(m)
    starts_at_base = np.array_equal(logits(m), base)
    config = TrainingConfig(lr=1e-3, epochs=lesson.pick(3, 2))
    curves[r] = Trainer(m, train_rows, tokenizer.pad_id, config).run().losses
    scores[r] = evaluate(m, test_rows, tokenizer.pad_id)
    print(f"r = {r}: starts at the base: {starts_at_base}; {m.count_parameters()}; accuracy {scores[r].accuracy:.3f}")

# %%
figure, axes = plt.subplots(figsize=(6, 3.6), layout="constrained")
for (r, losses), line in zip(curves.items(), ("-", "--", ":"), strict=False):
    width = max(1, len(losses) // 12)
    smooth = np.convolve(losses, np.ones(width) / width, mode="valid")
    axes.plot(range(width, width + len(smooth)), smooth, line, color="#009E73", label=f"r = {r}")
axes.set(xlabel="Step", ylabel="Training loss, smoothed", title="LoRA on MiniLM, by rank")
axes.legend()
lesson.save(figure, "training_by_rank")

# %% [markdown]
# ## 4. The merge
#
# After training, $X W + s \cdot X A B = X (W + s \cdot A B)$: the branch can be added into $W$ once, and the model is a
# plain one again, as fast as before. `unmerge_adapter` brings $W$ back to the last bit, because a copy of it is kept.


# %%
def milliseconds(m):
    times = []
    for _ in range(lesson.pick(15, 5)):
        began = time.perf_counter()
        logits(m)
        times.append(time.perf_counter() - began)
    return 1000 * float(np.median(times))


layers = m.method.layers  # name -> LoRALinear
before, with_branch = logits(m), milliseconds(m)
weights = {name: layer.linear.weight.numpy().copy() for name, layer in layers.items()}
m.merge_adapter()
merged, without_branch = logits(m), milliseconds(m)
m.unmerge_adapter()
restored = all(np.array_equal(layers[name].linear.weight.numpy(), weights[name]) for name in layers)
print(f"with the branch {with_branch:.1f} ms, merged {without_branch:.1f} ms")
print(f"largest difference of the logits {np.abs(merged - before).max():.1e}; W restored exactly: {restored}")

# %% [markdown]
# How large is what was learnt? The singular values of $s \cdot A B$, beside those of the $W$ that it is added to.

# %%
name = "blocks.5.v_proj"
layer = layers[name]
delta = layer.scale * layer.A.numpy() @ layer.B.numpy()
of_W, of_delta = (np.linalg.svd(matrix, compute_uv=False) for matrix in (weights[name], delta))
share = np.linalg.norm(delta) / np.linalg.norm(weights[name])

figure, axes = plt.subplots(figsize=(6, 3.6), layout="constrained")
axes.semilogy(range(1, 385), of_W, color="#333333", label=f"W of {name}")
axes.semilogy(range(1, layer.A.shape[1] + 1), of_delta[: layer.A.shape[1]], "D-", color="#009E73", label="s·AB")
axes.set(xlabel="Number of the singular value", ylabel="Size", xlim=(-5, 100), ylim=(1e-3, 10), title="What was learnt")
axes.legend()
lesson.save(figure, "singular_values")
print(f"{name}: the change is {100 * share:.1f} % of W")

# %% [markdown]
# ## What we found
#
# Each claim is checked on what was just computed.

# %%
# B = 0 starts at the base to the last bit, and only B has a gradient there; A = B = 0 never moves.
assert starts_at_base
assert norms["A random, B zero"][0] == 0 < norms["A random, B zero"][1]
assert norms["A zero, B zero"] == [0, 0]
# Training A and B finds the best change of their rank: no more is missed than must be.
assert all(ours < 1.02 * bound + 0.1 for ours, bound in zip(reached, best, strict=True))
# r (in + out) numbers a matrix, 12 matrices of 384 × 384.
assert m.count_parameters().method == 12 * r * (384 + 384)
# Merged, the model says the same; unmerged, its weights are the old ones, to the last bit.
assert np.abs(merged - before).max() < 1e-4 and restored
# AB has rank r, and is small beside W.
assert (of_delta[r:] < 1e-4 * of_delta[0]).all() and share < 0.5
if not lesson.fast:
    # A higher rank helps on this task, with one learning rate and 640 rows; the first few ranks help most.
    assert scores[16].accuracy > scores[1].accuracy + 0.02 and scores[1].accuracy > 0.55

# %% [markdown]
# ## Exercises
#
# 1. Start $A$ and $B$ both at random, at the size of $A$'s start. What does the untrained model answer now, and how many
#    steps does it take to be where the zero start began?
# 2. Put LoRA on `q_proj` alone, on `v_proj` alone and on both with half the rank: the same number of parameters three
#    times. Which is best? The paper's table 5 asks this of GPT-3.
# 3. Let $\alpha$ stay at 16 while $r$ goes from 1 to 64. Which learning rate is best at each rank? Do it again with
#    `use_rslora=True`.
#
# ## Sources
#
# - Hu et al., *LoRA: Low-Rank Adaptation of Large Language Models*, arXiv 2106.09685: section 4.1 (the idea and the
#   start), table 5 (which matrices), table 6 (which rank), section 7 (what is learnt).
# - Kalajdzievski, *A Rank Stabilization Scaling Factor for Fine-Tuning with LoRA*, arXiv 2312.03732.
# - Eckart and Young, *The approximation of one matrix by another of lower rank*, Psychometrika 1 (1936).
# - The code: `minipeft/peft/lora.py`.
