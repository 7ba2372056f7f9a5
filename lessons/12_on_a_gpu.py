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
# # On a GPU
#
# **The question.** What has to change in a program that trains on a CPU, so that it trains on a GPU?
#
# In this library: one line, `mp.set_backend("cupy")`. This lesson shows what is behind that line, runs on whatever this
# machine has, and says what is different there.

# %%
import time

import matplotlib.pyplot as plt
import numpy as np

import minipeft as mp
from minipeft.backend import Backend, active
from minipeft.peft import LoraConfig, get_peft_model
from minipeft.report.lesson import begin

lesson = begin("12_on_a_gpu")
backends, reasons = [], {}
for name in ("numpy", "numba", "cupy"):
    try:
        mp.set_backend(name)
        backends.append(name)
    except mp.UserError as error:
        reasons[name] = str(error)
for name in ("numpy", "numba", "cupy"):
    print(f"{name}: {'here' if name in backends else reasons[name]}")

# %% [markdown]
# ## 1. The shim
#
# Arrays of NumPy and of CuPy have the same functions under the same names. So everything above the lowest layer asks
# for the array library in use, `active().xp`, and never writes `np.` itself; a test reads all the source and checks it.
# What is left are *kernels*: the few functions that are worth writing for each device. The base class has a plain
# version of every one, as the formula reads, and a backend overrides those that it can do faster.

# %%
kernels = [name for name, value in vars(Backend).items() if callable(value) and not name.startswith("_")]
own = {}
for name in backends:
    kind = type(mp.set_backend(name))
    own[name] = [k for k in kernels if getattr(kind, k) is not getattr(Backend, k)]
    print(f"{name} overrides {len(own[name])} of {len(kernels)}: {', '.join(own[name])}")

# %% [markdown]
# ## 2. One step, on every backend
#
# The same program: a small transformer with LoRA, one batch, one gradient. Weights are drawn on the host from one seed,
# so every backend starts from the same bits. It does not end with them: a sum of float32 numbers depends on the order
# in which they are added, and each device adds in its own. Right means equal up to rounding, about seven digits.


# %%
def one_step(name):
    mp.set_backend(name)
    mp.seed(0)
    config = mp.nn.TransformerConfig(100, 64, layers=2, heads=4, d_ff=256, max_positions=32)
    model = mp.nn.Transformer(config, mp.nn.ClassificationHead(64, 2))
    m = get_peft_model(model, LoraConfig(r=4, init="gaussian"))
    ids = np.random.default_rng(0).integers(0, 100, (8, 16))
    optimizer = mp.optim.SGD(m.parameters(), lr=0.1)
    for _ in range(2):  # B is zero at first, and A gets its gradient from the second step on
        optimizer.zero_grad()
        loss = mp.functional.cross_entropy(m(ids), ids[:, 0] % 2)
        loss.backward()
        optimizer.step()
    return loss.item(), active().to_numpy(optimizer.flat.grad).copy()


results = {name: one_step(name) for name in backends}
again = one_step("numpy")
scale = np.abs(results["numpy"][1]).max()
apart = {name: float(np.abs(gradient - results["numpy"][1]).max() / scale) for name, (_, gradient) in results.items()}
for name in backends:
    print(
        f"{name}: loss {results[name][0]:.7f}, gradient differs from numpy's by {apart[name]:.1e} of its largest entry"
    )

numbers = np.random.default_rng(0).standard_normal(100_000).astype("float32")
orders = [float(np.cumsum(part)[-1]) for part in (numbers, numbers[::-1], np.sort(numbers))]
exact = float(numbers.astype("float64").sum())
print(f"one sum in three orders: {', '.join(f'{value:.5f}' for value in orders)}; exact {exact:.5f}")

# %% [markdown]
# ## 3. Why a kernel is worth writing
#
# A matrix product of two $n \times n$ matrices reads $2n^2$ numbers and does $2n^3$ operations: with large $n$, the
# arithmetic units are busy. A sum of two arrays does one operation for each twelve bytes that it moves: it waits for
# the memory, on any device, and on a GPU nearly always. So the operations between the products are *fused*: read once,
# computed in one go, written once. We measure a product, a sum, and GELU in a chain of separate operations and as one
# kernel.

# %%
mp.set_backend(backends[-1])
xp, backend = active().xp, active()
print(f"measured on {backend.name}")


def seconds(work):
    """The median; waits for the device, which otherwise answers before it has computed."""
    times = []
    for _ in range(lesson.pick(10, 4)):
        began = time.perf_counter()
        work()
        backend.synchronize()
        times.append(time.perf_counter() - began)
    return float(np.median(times[1:]))


sizes = lesson.pick((32, 64, 128, 256, 512, 1024, 2048), (32, 128, 512))
products, sums = [], []
for n in sizes:
    x, y = xp.ones((n, n), dtype="float32"), xp.ones((n, n), dtype="float32")
    products.append(2 * n**3 / seconds(lambda x=x, y=y: backend.matmul(x, y)) / 1e9)
    sums.append(n**2 / seconds(lambda x=x, y=y: x + y) / 1e9)

figure, axes = plt.subplots(figsize=(6, 3.8), layout="constrained")
axes.loglog(sizes, products, "o-", color="#0072B2", base=2, label="matrix product")
axes.loglog(sizes, sums, "s--", color="#D55E00", base=2, label="sum of two arrays")
axes.set_yscale("log", base=10)
axes.set_xticks(sizes, sizes)
axes.set(xlabel="n, for n × n matrices", ylabel="GFLOP/s", title=f"Operations a second ({backend.name})")
axes.legend()
lesson.save(figure, "product_and_sum")

x = xp.asarray(np.random.default_rng(0).standard_normal((lesson.pick(4096, 512), 1024)), dtype="float32")
fused = seconds(lambda: backend.gelu(x, tanh=True, slope=False))
chain = seconds(lambda: 0.5 * x * (1 + xp.tanh(0.7978845608 * (x + 0.044715 * x * x * x))))
print(f"GELU as eight operations: {1e3 * chain:.1f} ms, as one kernel: {1e3 * fused:.1f} ms")

# %% [markdown]
# ## 4. What else is different on a GPU
#
# - **The host does not wait.** A GPU works through a queue; Python only fills it. `float(loss)` would stop the host
#   until the queue is empty, so the training loop never asks for it inside a step: losses stay on the device until the
#   epoch's end.
# - **Token ids are checked on the host.** An id beyond the table is an error in NumPy; a GPU would read something else
#   and say nothing. So ids are checked before they are sent.
# - **Memory is the device's own.** Weights, gradients, moments and activations must fit together: the columns of
#   `minipeft compare` say how much of each there is.
#
# How the CuPy backend was checked is said in the README, under *What was checked, and what not yet*. When this lesson
# was written it was this: CuPy's own code, over an emulated device, equals NumPy in every kernel, gradient and training
# step; and NVIDIA's compiler takes every CUDA source. It had not run on GPU hardware. With a GPU, `pytest -m gpu` is
# the judge.

# %% [markdown]
# ## What we found
#
# Each claim is checked on what was just computed.

# %%
# The same seed gives the same bits on one backend, and the same numbers up to rounding on all.
assert np.array_equal(again[1], results["numpy"][1]) and again[0] == results["numpy"][0]
assert all(difference < 1e-4 for difference in apart.values())
# Rounding depends on the order: three orders, three sums, each right to a few digits.
assert len(set(orders)) > 1 and all(abs(value - exact) < 1e-4 * np.abs(numbers).sum() for value in orders)
# One pass over memory beats eight.
assert fused < chain
if not lesson.fast:
    # A large matrix product does many times more operations a second than a sum, which waits for the memory.
    assert products[-1] > 5 * sums[-1]
# Wherever a backend is missing, the error says what to do.
assert all("install" in reason or "GPU" in reason for reason in reasons.values())

# %% [markdown]
# ## Exercises
#
# 1. Write `layer_norm` as separate operations of `xp`, and time it against `backend.layer_norm`. How many times does each
#    read the array?
# 2. A GPU of 1,000 GB/s and 60,000 GFLOP/s: from which $n$ on does a product of $n \times n$ matrices in float32 wait
#    for the arithmetic rather than for the memory? Find the same for this machine from the figure.
# 3. Put `loss.item()` into the loop of section 2 after every step, and think of the queue: what can the GPU do while
#    Python prepares the next step, and what can it do then?
#
# ## Sources
#
# - Williams, Waterman and Patterson, *Roofline: An Insightful Visual Performance Model*, CACM 52 (2009).
# - Okuta et al., *CuPy: A NumPy-Compatible Library for NVIDIA GPU Calculations*, LearningSys at NeurIPS 2017.
# - The code: `minipeft/backend/base.py`, `numpy_backend.py`, `cupy_backend.py`.
