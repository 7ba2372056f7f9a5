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
# # Autograd
#
# **The question.** A model is a function of millions of numbers. How can a program know the derivative of its loss with
# respect to every one of them, exactly, for the price of a few forward passes?
#
# We take one operation apart, write one of our own, check it, and train a small network with what we have.

# %%
import time
from itertools import pairwise

import matplotlib.pyplot as plt
import numpy as np

import minipeft as mp
from minipeft.autograd.saved import count_nodes, saved_arrays
from minipeft.autograd.tensor import record
from minipeft.report.lesson import begin

lesson = begin("01_autograd")
rng = np.random.default_rng(0)

# %% [markdown]
# ## 1. An operation and its vector-Jacobian product
#
# Let $Y = X W$ and let $L$ be a number computed from $Y$. Somebody tells us $G = \partial L / \partial Y$, a matrix of
# $Y$'s shape. The chain rule gives what we pass on:
#
# $$\frac{\partial L}{\partial X} = G\, W^\top, \qquad \frac{\partial L}{\partial W} = X^\top G .$$
#
# The Jacobian $\partial Y / \partial W$ has as many entries as $Y$ times as many as $W$; it is never built. A function
# from $G$ to $\partial L / \partial W$ is all that is needed: a vector-Jacobian product, *vjp* for short.

# %%
X = mp.Tensor(rng.standard_normal((5, 3)), requires_grad=True)
W = mp.Tensor(rng.standard_normal((3, 2)), requires_grad=True)
Y = X @ W
L = (Y * Y).sum()  # so that G = 2 Y
L.backward()
G = 2 * Y.numpy()
by_hand = {"X": G @ W.numpy().T, "W": X.numpy().T @ G}
print("dL/dX as by hand:", np.allclose(X.grad, by_hand["X"]), " dL/dW as by hand:", np.allclose(W.grad, by_hand["W"]))

# %% [markdown]
# ## 2. The tape
#
# Each operation that has an input to differentiate leaves a node on the *tape*: its inputs, and a vjp for each.
# `backward` walks the nodes from the newest to the oldest, and where a value was used twice it adds the two gradients.
# What the vjps need later has to be kept until then, and this is the memory that training costs. A matrix product keeps
# $X$ for $\partial L/\partial W$. If $W$ is frozen, nobody will ask for it, and $X$ is not kept: all of
# parameter-efficient fine-tuning rests on this line.


# %%
def kept(x_needs, w_needs):
    """The nodes and the kept bytes after three matrix products with a ReLU between them."""
    x = mp.Tensor(np.ones((64, 128), "float32"), requires_grad=x_needs)
    weights = [mp.Tensor(np.ones((128, 128), "float32"), requires_grad=w_needs) for _ in range(3)]
    for w in weights:
        x = (x @ w).relu()
    held = {id(w.data) for w in weights}
    return count_nodes(x), sum(a.nbytes for a in saved_arrays(x) if id(a) not in held)


tapes = {(x, w): kept(x, w) for x in (False, True) for w in (True, False)}
for (x_needs, w_needs), (nodes, size) in tapes.items():
    print(f"differentiate X: {x_needs!s:5}  W: {w_needs!s:5} -> {nodes} nodes, {size / 1000:.0f} kB kept besides W")

# %% [markdown]
# ## 3. An operation of our own
#
# `record(value, (parent, vjp), ...)` is the whole interface. Softplus is $y = \ln(1 + e^x)$, with $dy/dx = 1/(1 +
# e^{-x})$. The bias below has one number a column and is added to every row: its gradient is the sum over the rows.
# Broadcasting is undone in one place, by the tape, so a vjp need not think of it.


# %%
def softplus(x):
    """ln(1 + eˣ), element by element."""
    slope = 1 / (1 + np.exp(-x.data))
    return record(np.log1p(np.exp(x.data)), (x, lambda g: g * slope))


def wrong_softplus(x):
    """With the slope of tanh: a plausible mistake."""
    slope = 1 - np.tanh(x.data) ** 2
    return record(np.log1p(np.exp(x.data)), (x, lambda g: g * slope))


rows, bias = mp.Tensor(rng.standard_normal((4, 3)), requires_grad=True), mp.Tensor(np.zeros(3), requires_grad=True)
mp.gradcheck(lambda a, b: softplus(a + b), rows, bias)
print("softplus passes the check; the bias has a gradient of shape", bias.grad.shape)
try:
    mp.gradcheck(lambda a, b: wrong_softplus(a + b), rows, bias)
    caught = False
except AssertionError as error:
    caught = True
    print("the wrong one does not:", error)

# %% [markdown]
# ## 4. How a gradient is checked
#
# The definition of a derivative is a check: $\big(L(x + h) - L(x - h)\big) / 2h$. With a large $h$ the curve bends away
# in between, an error like $h^2$; with a small one the two values agree in nearly all their digits, and the difference
# keeps the few wrong ones, an error like $\varepsilon / h$. In float32 the best that can be had is three or four
# digits. So gradients are checked in float64, and trained in float32.

# %%
steps = 10.0 ** np.arange(-12, 0.1, 0.5)
errors = {}
for dtype in ("float32", "float64"):
    x, exact = np.array(0.7, dtype), np.cos(0.7) * np.exp(np.sin(0.7))
    f = lambda x: np.exp(np.sin(x))
    h = steps.astype(dtype)
    errors[dtype] = np.abs((f(x + h) - f(x - h)) / (2 * h) - exact) / exact

figure, axes = plt.subplots(figsize=(6, 3.6), layout="constrained")
for (dtype, error), look, colour in zip(errors.items(), ("s--", "o-"), ("#D55E00", "#0072B2"), strict=True):
    axes.loglog(steps, np.maximum(error, 1e-13), look, color=colour, markersize=4, label=dtype)
axes.set(xlabel="Step h", ylabel="Relative error", title="A finite difference of exp(sin x), against the derivative")
axes.legend()
lesson.save(figure, "finite_differences")

# %% [markdown]
# ## 5. What a gradient costs
#
# A finite difference needs two forward passes for each parameter. The backward pass gives all of them at once, for
# about twice the work of one forward pass: two matrix products where the forward pass has one. We train a network of
# three layers to tell two spirals apart and count both.

# %%
n = lesson.pick(200, 60)
angle = np.sqrt(rng.random(n)) * 2.5 * np.pi
spiral = np.stack([angle * np.cos(angle), angle * np.sin(angle)], axis=1) / 8
points = np.concatenate([spiral, -spiral]).astype("float32") + rng.normal(0, 0.01, (2 * n, 2)).astype("float32")
classes = np.repeat([0, 1], n)

mp.seed(0)
widths = (2, 64, 64, 2)
weights = [mp.nn.Parameter(rng.standard_normal((a, b), dtype="float32") * (2 / a) ** 0.5) for a, b in pairwise(widths)]
biases = [mp.nn.Parameter(np.zeros(b, "float32")) for b in widths[1:]]


def network(x):
    x = mp.Tensor(x)
    for i, (w, b) in enumerate(zip(weights, biases, strict=True)):
        x = mp.functional.linear(x, w, b)
        x = x.tanh() if i < 2 else x
    return x


optimizer = mp.optim.AdamW([*weights, *biases], lr=0.01, weight_decay=0.0)
losses = []
for _ in range(lesson.pick(1500, 300)):
    optimizer.zero_grad()
    loss = mp.functional.cross_entropy(network(points), classes)
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
accuracy = float((network(points).numpy().argmax(axis=1) == classes).mean())


def seconds(work, repeats=50):
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return float(np.median(times))


parameters = sum(p.numel() for p in (*weights, *biases))
with mp.no_grad():
    forward = seconds(lambda: network(points))
both = seconds(lambda: mp.functional.cross_entropy(network(points), classes).backward())
print(f"{parameters} parameters; forward {1e3 * forward:.2f} ms, forward and backward {1e3 * both:.2f} ms,")
print(f"by finite differences {2 * parameters * forward:.1f} s for one gradient. Training accuracy {accuracy:.3f}")

# %%
side = np.linspace(-1.15, 1.15, 150, dtype="float32")
grid = np.stack(np.meshgrid(side, side), axis=-1).reshape(-1, 2)
with mp.no_grad():
    scores = network(grid).numpy()
figure, (left, right) = plt.subplots(1, 2, figsize=(8.5, 3.8), layout="constrained")
left.semilogy(losses, color="#0072B2")
left.set(xlabel="Step", ylabel="Loss", title="Training")
right.contourf(
    side, side, (scores[:, 1] - scores[:, 0]).reshape(150, 150), levels=[-1e9, 0, 1e9], colors=["#cfe3f1", "#f8dcc8"]
)
for label, colour, marker in ((0, "#0072B2", "o"), (1, "#D55E00", "^")):
    right.scatter(*points[classes == label].T, s=9, color=colour, marker=marker)
right.set(title="What was learnt", aspect="equal", xticks=[], yticks=[])
lesson.save(figure, "two_spirals")

# %% [markdown]
# ## What we found
#
# Each claim is checked on what was just computed.

# %%
# The tape's gradients are those of the chain rule by hand.
assert np.allclose(X.grad, by_hand["X"]) and np.allclose(W.grad, by_hand["W"])
# Frozen weights cost no kept input, only the ReLU's sign; and where nothing is differentiated there is no tape.
assert tapes[True, False][1] < tapes[True, True][1] / 3 and tapes[False, False] == (0, 0)
# A check against finite differences finds a wrong vjp; the right one passes.
assert caught and bias.grad.shape == (3,)
# Float64 gives ten digits at the best step, float32 not even five.
assert errors["float64"].min() < 1e-9 and errors["float32"].min() > 1e-7
# All derivatives together cost a few forward passes, not two a parameter.
assert both < 0.02 * 2 * parameters * forward
assert losses[-1] < losses[0] / 2
if not lesson.fast:
    assert accuracy > 0.98

# %% [markdown]
# ## Exercises
#
# 1. Write `cos` as an operation with `record`, and check it. Forget the minus sign of its derivative: does `gradcheck`
#    find it? Then check it at $x = 0$ alone: does it still?
# 2. `(x @ w1) @ w2` and `x @ (w1 @ w2)` have the same value. Count what the tape keeps for each, with `x` of shape
#    (1000, 10) and square weights.
# 3. Write the network's last layer and its cross-entropy in elementary operations (`exp`, `sum`, `log`) in place of the
#    fused one. How many nodes more are there, and how many bytes?
#
# ## Sources
#
# - Baydin, Pearlmutter, Radul and Siskind, *Automatic differentiation in machine learning: a survey*, arXiv 1502.05767:
#   section 3.2 (reverse mode), 3.1 (its cost).
# - Rumelhart, Hinton and Williams, *Learning representations by back-propagating errors*, Nature 323 (1986).
# - The code: `minipeft/autograd/tape.py`, `tensor.py`, `ops.py`, `gradcheck.py`.
