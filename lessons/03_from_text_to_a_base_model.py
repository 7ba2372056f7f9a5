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
# # From text to a base model
#
# **The question.** A plain text has no labels and no questions. How does guessing its next piece, over and over, make a
# model that writes, and how do we know that it has learnt something?
#
# A language model gives a probability to a text by the chain rule, one token after another:
#
# $$p(x_1, \dots, x_n) = \prod_{t} p_\theta(x_t \mid x_1, \dots, x_{t-1}).$$
#
# Pre-training makes the text likely: it lowers the mean of $-\log p_\theta(x_t \mid x_{<t})$. Every position is an example,
# and the text labels itself. We go from bytes to tokens, set marks that counting can reach, train a small Llama, and see
# what it has beyond counting.

# %%
import matplotlib.pyplot as plt
import numpy as np

import minipeft as mp
from minipeft.backend.workers import default_workers
from minipeft.data import PackedTokens
from minipeft.data.bpe import train_bpe
from minipeft.data.corpus import encode_documents, load_corpus
from minipeft.data.token_rows import windows
from minipeft.models import Sampling, generate
from minipeft.models.fresh import fresh_model
from minipeft.report.lesson import begin
from minipeft.training import Trainer, TrainingConfig, evaluate_tokens

lesson = begin("03_from_text_to_a_base_model")
mp.seed(0)

# %% [markdown]
# ## 1. From text to tokens
#
# A byte-pair tokenizer begins with the 256 bytes and joins, again and again, the two neighbours that stand together most
# often. The more tokens, the fewer of them a text takes, and the larger the table of the model.

# %%
corpus = load_corpus("shakespeare")
text, held_out_text = corpus.train[0], corpus.held_out[0]
text, held_out_text = text[: lesson.pick(650_000, 60_000)], held_out_text[: lesson.pick(None, 6_000)]
held_out_bytes = len(held_out_text.encode())

sizes = lesson.pick((259, 300, 400, 512, 1024, 2048), (259, 512))
bytes_per_token = {}
for size in sizes:
    tokenizer = train_bpe(text.splitlines(True), size)
    bytes_per_token[size] = held_out_bytes / len(tokenizer.ids(held_out_text))
    shown = [tokenizer.decode([i]) for i in tokenizer.ids("Shall I compare thee to a summer's day?")]
    print(f"{size:>5} tokens: {bytes_per_token[size]:.2f} bytes each; {'|'.join(shown)}")

figure, axes = plt.subplots(figsize=(6, 3.6), layout="constrained")
axes.semilogx(sizes, list(bytes_per_token.values()), "o-", color="#0072B2", base=2)
axes.set(
    xlabel="Tokens in the vocabulary",
    ylabel="Bytes of held-out text a token",
    title="A larger vocabulary, a shorter text",
)
lesson.save(figure, "bytes_per_token")

# %% [markdown]
# ## 2. What counting can do
#
# The loss in nats a token depends on how the text is cut. **Bits per byte** do not: $-\log_2$ likelihood of the held-out
# text over its bytes. Three marks, without any training: every byte alike; how often each token stands in the text; and how
# often it stands after the one before (with $k$ counts of the former added, so that nothing is impossible).

# %%
V = 512
tokenizer = train_bpe(text.splitlines(True), V)
train = encode_documents(tokenizer, (text,))
held_out = encode_documents(tokenizer, (held_out_text,))


def bits_per_byte(nats):
    """-log₂ likelihood of the held-out text over its bytes."""
    return float(nats) / np.log(2) / held_out_bytes


one = np.bincount(train, minlength=V) + 1.0
one /= one.sum()
pairs = np.zeros((V, V))
np.add.at(pairs, (train[:-1], train[1:]), 1)
k = 20
two = (pairs + k * one) / (pairs.sum(1, keepdims=True) + k)  # rows: the token before
marks = {
    "every byte alike": 8.0,
    "one token": bits_per_byte(-np.log(one[held_out[1:]]).sum()),
    "two tokens": bits_per_byte(-np.log(two[held_out[:-1], held_out[1:]]).sum()),
}
for name, bits in marks.items():
    print(f"{name:<17} {bits:.3f} bits per byte")

# %% [markdown]
# ## 3. The model, before and while it learns
#
# A Llama of four blocks, with random weights. It knows nothing, so it should find all $V$ tokens about alike: a loss of
# $\ln V$. Each step takes 16 windows of 64 tokens; the target of a token is the one that follows it.

# %%
context = 64
rows = PackedTokens(train, context)
batch = rows.batch([0])
for name, row in (("inputs ", batch.input_ids[0]), ("targets", batch.labels[0])):
    print(name, "|".join(tokenizer.decode([i]).replace("\n", "↵") for i in row[:14]))

model = fresh_model("llama", tokenizer, d_model=128, layers=4, heads=4, context=context)
test = windows(held_out, context)
first = evaluate_tokens(model, test, tokenizer.pad_id)
print(f"{sum(p.numel() for p in model.parameters()):,} parameters")
print(f"at the start {first.loss:.3f} nats a token; ln V = {np.log(V):.3f}")
PROMPT = "ROMEO:\n"
before = [made.text for made in generate(model, [PROMPT] * 8, Sampling(40, temperature=0.7))]

quick = test.sample(lesson.pick(60, 8))
curve = []


def watch(step, steps, loss):
    """Look at the held-out loss now and then."""
    if step % max(1, steps // 12) == 0:
        curve.append((step, evaluate_tokens(model, quick, tokenizer.pad_id).loss))
        model.train()


config = TrainingConfig(
    lr=3e-3, epochs=1, batch_size=16, weight_decay=0.1, warmup=0.05, schedule="cosine", workers=default_workers()
)
losses = Trainer(model, rows, tokenizer.pad_id, config, on_step=watch).run().losses
last = evaluate_tokens(model, test, tokenizer.pad_id)
marks["our model"] = bits_per_byte(last.nats)
print(f"after {len(losses)} steps: {last.loss:.3f} nats a token, {marks['our model']:.3f} bits per byte")

# %%
to_bits = len(held_out) / np.log(2) / held_out_bytes  # from nats a token to bits per byte, about
figure, axes = plt.subplots(figsize=(6.4, 3.8), layout="constrained")
axes.plot(
    range(1, len(losses) + 1), np.array(losses) * to_bits, color="#0072B2", linewidth=0.8, label="training batches"
)
axes.plot([s for s, _ in curve], [x * to_bits for _, x in curve], "o--", color="#D55E00", label="held out")
for name in ("one token", "two tokens"):
    axes.axhline(marks[name], color="#666666", linewidth=1, linestyle=":")
    axes.annotate(name, (len(losses), marks[name]), ha="right", va="bottom", color="#666666")
axes.set(xlabel="Step", ylabel="Bits per byte", title="Pre-training, beside what counting can do")
axes.legend()
lesson.save(figure, "pre_training")

# %% [markdown]
# ## 4. It uses what it has read
#
# Counting pairs looks at one token. Does our model look further? If it does, it guesses better where it has read more than
# at the very beginning of a window, where it has read one token as well. And how far does it look?

# %%
full_windows = [i for i, row in enumerate(test.ids) if len(row) == context]
ids, targets = (np.stack([part[i] for i in full_windows]) for part in (test.ids, test.labels))
nats = np.zeros(ids.shape)
with mp.no_grad():
    for at in range(0, len(ids), 32):
        z = model(ids[at : at + 32]).numpy().astype("float64")  # (windows, context, V)
        z -= z.max(-1, keepdims=True)
        log_p = z - np.log(np.exp(z).sum(-1, keepdims=True))
        nats[at : at + 32] = -np.take_along_axis(log_p, targets[at : at + 32, :, None], -1)[..., 0]
by_place = nats.mean(0)
groups = by_place.reshape(8, -1).mean(1)
print(f"nats a token after one token: {by_place[0]:.2f}; by eighths of the window:", *(f"{x:.2f}" for x in groups))

figure, axes = plt.subplots(figsize=(6, 3.6), layout="constrained")
axes.plot(range(1, context + 1), by_place, color="#0072B2", linewidth=0.8)
axes.plot(np.arange(8) * 8 + 4.5, groups, "o-", color="#D55E00")
axes.set(xlabel="Tokens that have been read", ylabel="Loss (nats a token)", title="What more context is worth")
lesson.save(figure, "loss_by_place")

# %% [markdown]
# ## 5. It writes
#
# To write is to draw a token, put it behind the text, and ask again. The likeliest token each time (temperature 0) is safe
# and soon goes round in circles; drawn at temperature 1 it is lively, and wrong more often.

# %%
written = {"before training": before}
for T in (0.0, 0.7, 1.0):
    written[T] = [made.text for made in generate(model, [PROMPT] * 8, Sampling(lesson.pick(50, 20), temperature=T))]
for when, made in written.items():
    print(f"--- {when if isinstance(when, str) else f'temperature {when}'}\n{PROMPT}{made[0]}\n")
words = set(text.split())
known = {t: np.mean([w in words for w in " ".join(made).split()] or [0]) for t, made in written.items()}
print("words that the corpus has:", ", ".join(f"{t}: {100 * share:.0f} %" for t, share in known.items()))

# %% [markdown]
# This is a **base model**: it goes on in the manner of its text, and that is all. Asked a question, it writes more text
# like it. What makes it answer comes after: instruction tuning (`minipeft train lora:8 --task instruct ...`).

# %% [markdown]
# ## What we found
#
# Each claim is checked on what was just computed.

# %%
# A larger vocabulary cuts the text into fewer tokens.
assert sorted(bytes_per_token.values()) == list(bytes_per_token.values())
# An untrained model finds all tokens about alike: its loss is ln V.
assert abs(first.loss - np.log(V)) < 0.2
# Every token of the held-out text is a target exactly once.
assert last.targets == len(held_out) - 1
# Training lowers the loss on text that was never trained on.
assert len(curve) >= 10
assert last.loss < first.loss - 1
# Two tokens are better than one, and counting is better than nothing.
assert marks["two tokens"] < marks["one token"] < 8
if not lesson.fast:
    # The model is better than counting pairs: it looks further back than one token, and gains by it.
    assert marks["our model"] < marks["two tokens"] - 0.1
    assert by_place[4:].mean() < by_place[0] - 0.15
    # But a model this small hardly looks further back than ten tokens or so: later eighths are all alike.
    assert abs(groups[2:4].mean() - groups[6:].mean()) < 0.2
    # It has learnt to spell: what it writes is made of the corpus's words far more often than before.
    assert known[0.7] > known["before training"] + 0.2

# %% [markdown]
# ## Exercises
#
# 1. Train for four epochs in place of one. When does the held-out loss stop falling, while the training loss goes on?
# 2. Use a vocabulary of 2,048. The loss in nats a token goes up: is the model worse? Compare the bits per byte.
# 3. Count triples of tokens, smoothed by the pairs as the pairs are by single tokens. Do you reach the model? How many of
#    the held-out triples are in the training text at all?
#
# ## Sources
#
# - Shannon, *Prediction and Entropy of Printed English*, Bell System Technical Journal 30 (1951): guessing the next letter.
# - Sennrich et al., *Neural Machine Translation of Rare Words with Subword Units*, arXiv 1508.07909: byte pairs.
# - Radford et al., *Language Models are Unsupervised Multitask Learners* (2019), section 2: the chain rule, byte-level BPE.
# - Touvron et al., *LLaMA*, arXiv 2302.13971: the blocks of our model.
# - The code: `minipeft/experiments/pretrain.py`, which does this on any text, with checkpoints (`minipeft pretrain`).
