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
# # The transformer
#
# **The question.** A word's row in the table is the same in every sentence. How does a transformer make of it a vector
# that knows its neighbours?
#
# We take a real one, MiniLM, and compute its blocks by hand, with matrix products, sums and exponentials alone.

# %%
import matplotlib.pyplot as plt
import numpy as np

import minipeft as mp
from minipeft.report.lesson import begin

lesson = begin("02_transformer")
mp.seed(0)
model = mp.load_model("minilm", task="features", dropout=0.0)  # fetched if it is not here yet
tokenizer, d, heads = model.tokenizer, model.config.d_model, model.config.heads


def ids_of(text):
    return tokenizer.encode([text])[0].input_ids[None]  # (1, seq)


sentence = "the old bank of the river was covered with flowers"
words = [tokenizer.decode([i]) or "·" for i in ids_of(sentence)[0]]
words[0], words[-1] = "[CLS]", "[SEP]"
print(f"d = {d}, {len(model.blocks)} blocks of {heads} heads; {len(words)} tokens: {' '.join(words)}")

# %% [markdown]
# ## 1. Attention
#
# Each position $i$ asks a question $q_i = x_i W_Q$, offers a key $k_i = x_i W_K$ and a value $v_i = x_i W_V$. It takes
# the mean of all values, weighted by how well their keys fit its question:
#
# $$P = \mathrm{softmax}\!\left(\frac{Q K^\top}{\sqrt{d_h}}\right), \qquad \text{out} = P V .$$
#
# This happens in every *head* separately, on $d_h = d/\text{heads}$ of the $d$ numbers. A block adds what comes out of
# the heads to what went in, normalises, and does the same with two matrices and a GELU between them. That is all of it:


# %%
def norm(x, layer):
    """(x - mean) / √(variance + ε) ⊙ weight + bias, along the last axis."""
    centred = x - x.mean(-1, keepdims=True)
    variance = (centred * centred).mean(-1, keepdims=True)
    return centred / (variance + layer.eps).sqrt() * layer.weight + layer.bias


def block_by_hand(block, x):
    """(seq, d) -> (seq, d), and the attention weights (heads, seq, seq)."""
    seq = x.shape[0]
    q, k, v = (x @ p.weight + p.bias for p in (block.q_proj, block.k_proj, block.v_proj))
    Q, K, V = (t.reshape(seq, heads, d // heads).transpose(1, 0, 2) for t in (q, k, v))  # (heads, seq, d_h)
    scores = Q @ K.mT / (d // heads) ** 0.5  # (heads, seq, seq)
    e = (scores - scores.max(-1, keepdims=True)).exp()
    P = e / e.sum(-1, keepdims=True)
    mixed = (P @ V).transpose(1, 0, 2).reshape(seq, d)
    x = norm(x + mixed @ block.o_proj.weight + block.o_proj.bias, block.attn_norm)
    wide = mp.functional.gelu(x @ block.up_proj.weight + block.up_proj.bias)  # (seq, 4d)
    return norm(x + wide @ block.down_proj.weight + block.down_proj.bias, block.mlp_norm), P.numpy()


def model_by_hand(text):
    """The hidden states after each block, (blocks + 1, seq, d), and the weights of each, (blocks, heads, seq, seq)."""
    with mp.no_grad():
        x = model.embed(ids_of(text))[0]
        states, weights = [x.numpy()], []
        for block in model.blocks:
            x, P = block_by_hand(block, x)
            states.append(x.numpy())
            weights.append(P)
    return np.stack(states), np.stack(weights)


states, weights = model_by_hand(sentence)
with mp.no_grad():
    library = model(ids_of(sentence)).numpy()[0]
difference = np.abs(states[-1] - library).max()
print(f"by hand and by the library: largest difference {difference:.1e}")

# %% [markdown]
# ## 2. What the heads look at
#
# A row of $P$ says where a position looks. We ask each of the 72 heads how much it looks at the word before, at the word
# after, and at the full stop of this model, `[SEP]`, where a head looks that has nothing to say. Then we draw the best of
# each.

# %%
inner = slice(1, len(words) - 1)  # the words themselves
looks = {
    "the word before": np.array([[np.diag(P, -1)[inner].mean() for P in block] for block in weights]),
    "the word after": np.array([[np.diag(P, 1)[inner].mean() for P in block] for block in weights]),
    "[SEP]": weights[:, :, inner, -1].mean(axis=2),
}
figure, panels = plt.subplots(1, 3, figsize=(10, 4.6), sharey=True)
for (name, share), axes in zip(looks.items(), panels, strict=True):
    block, head = np.unravel_index(share.argmax(), share.shape)
    axes.imshow(weights[block, head], cmap="Blues", vmin=0, vmax=1)
    axes.set_title(f"{name}: {share.max():.0%}\nblock {block}, head {head}", fontsize=11)
    axes.set_xticks(range(len(words)), words, rotation=90)
    axes.set_yticks(range(len(words)), words)
    axes.grid(visible=False)
    print(f"{name}: {share.max():.0%} of block {block}, head {head}; {share.mean():.0%} of all heads")
figure.tight_layout()
lesson.save(figure, "what_heads_look_at")

# %% [markdown]
# ## 3. A word and its neighbours
#
# "bank" has two senses. In the four sentences it stands at the same place, so the same vector goes in. We follow it
# through the blocks and compare it, by the cosine, with "bank" of the same sense and of the other.

# %%
texts = {
    "river": ["the bank was muddy after the flood of the river", "the bank was green with reeds along the stream"],
    "money": ["the bank was closed after the robbery of its safe", "the bank was fined for its loans to the company"],
}
bank = {sense: [model_by_hand(text)[0][:, 2] for text in pair] for sense, pair in texts.items()}  # (blocks + 1, d)


def cosine(a, b):
    return (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)


same = np.mean([cosine(*bank["river"]), cosine(*bank["money"])], axis=0)
other = np.mean([cosine(a, b) for a in bank["river"] for b in bank["money"]], axis=0)

figure, axes = plt.subplots(figsize=(6, 3.6), layout="constrained")
axes.plot(same, "o-", color="#0072B2", label="the same sense")
axes.plot(other, "s--", color="#D55E00", label="the other sense")
axes.set(xlabel="Blocks passed", ylabel="Cosine", ylim=(0.8, 1.02), title="“bank” in two sentences")
axes.legend()
lesson.save(figure, "bank")

# %% [markdown]
# ## 4. Order, and time
#
# Attention itself does not know the order of the words: shuffle the rows that go in, and the same rows come out,
# shuffled. Order comes in with the position rows alone. A language model must not see the future either: its softmax
# gives weight zero to every later position, so what is computed for a word never depends on what follows.

# %%
rng = np.random.default_rng(0)
x = mp.Tensor(rng.standard_normal((1, 8, 64), dtype="float32"))
shuffle = rng.permutation(8)
mixed = mp.functional.attention(x, x, x, heads=4).numpy()
y = mp.Tensor(x.numpy()[:, shuffle])
shuffled = mp.functional.attention(y, y, y, heads=4).numpy()

early = {}
for causal in (False, True):
    mp.seed(0)
    config = mp.nn.TransformerConfig(50, 64, layers=2, heads=4, d_ff=256, causal=causal, norm_first=True)
    small, ids = mp.nn.Transformer(config), np.arange(8)[None]
    changed = ids.copy()
    changed[0, 7] = 49
    with mp.no_grad():
        early[causal] = float(np.abs(small(ids).numpy() - small(changed).numpy())[0, :7].max())
print(f"another last word moves earlier positions by {early[False]:.3f}; in a causal model by {early[True]}")

# %% [markdown]
# ## 5. Where the parameters are
#
# A block has four $d \times d$ matrices, two of $d \times 4d$, their biases, and two norms: $12 d^2 + 13 d$.

# %%
counts = {
    "word table": model.embed.word.weight.numel(),
    "blocks": sum(p.numel() for block in model.blocks for p in block.parameters()),
    "all": sum(p.numel() for p in model.parameters()),
}
for name, count in counts.items():
    print(f"{name:10} {count / 1e6:6.2f} M, {count / counts['all']:.0%}")

# %% [markdown]
# ## What we found
#
# Each claim is checked on what was just computed.

# %%
# Thirty lines of elementary operations are the model.
assert difference < 1e-4
# Every row of P is a mean: its weights add up to 1.
assert np.allclose(weights.sum(-1), 1, atol=1e-5)
# Some head does little but look one word back or ahead; the average head does not.
assert all(looks[name].max() > 0.5 > 2 * looks[name].mean() for name in ("the word before", "the word after"))
# The same vector goes in; what comes out is nearer to its own sense.
assert np.allclose(other[0], 1, atol=1e-5)
assert (same[1:] > other[1:]).all()
# Attention knows no order, and a causal model no future.
assert np.allclose(shuffled, mixed[:, shuffle], atol=1e-5)
assert early[True] == 0 < early[False]
assert counts["blocks"] == len(model.blocks) * (12 * d**2 + 13 * d)

# %% [markdown]
# ## Exercises
#
# 1. Leave out $\sqrt{d_h}$ in `block_by_hand`. What happens to the largest weight of each row, and why is that bad for
#    the gradient of a softmax?
# 2. Set all position rows to zero. Do the three heads of section 2 still look where they looked?
# 3. Find another word with two senses and four sentences for it. After which block are the senses apart?
#
# ## Sources
#
# - Vaswani et al., *Attention Is All You Need*, arXiv 1706.03762: section 3.2 (attention), 3.5 (positions).
# - Devlin et al., *BERT*, arXiv 1810.04805; Wang et al., *MiniLM*, arXiv 2002.10957: the model used here.
# - Clark et al., *What Does BERT Look At?*, arXiv 1906.04341: heads that look one word back, and at [SEP].
# - The code: `minipeft/nn/transformer.py`, `attention` in `minipeft/autograd/functional.py`.
