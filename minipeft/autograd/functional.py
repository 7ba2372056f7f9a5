"""Fused functions: one coarse node each, keeping the least that its gradient needs.

Twelve small nodes for a GELU would keep twelve arrays; one node keeps the derivative alone. The kernels are the backend's.
"""

from __future__ import annotations

import math
from typing import Any

from minipeft.autograd.tape import Partial, Product
from minipeft.autograd.tensor import Tensor, grad_enabled, record
from minipeft.backend import Array, active, random
from minipeft.errors import UserError


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Y = X W + b: (..., in), (in, out), (out,) -> (..., out).

    dX = g Wᵀ, dW = Xᵀ g, db = Σ g. With a frozen W, X is not kept.
    """
    if x.shape[-1:] != weight.shape[:1]:
        raise UserError(f"linear: input {x.shape} does not fit weight {weight.shape}; needs (..., in) and (in, out).")
    backend = active()
    W = weight.data
    X = x.data.reshape(-1, W.shape[0])
    Y = backend.matmul(X, W)
    if bias is not None:
        Y += bias.data
    return record(
        Y.reshape(*x.shape[:-1], W.shape[1]),
        (x, lambda g: backend.matmul(g, W.T)),
        (weight, lambda g: Product(X.T, _flat(g))),
        (bias, lambda g: backend.column_sum(_flat(g))),
    )


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float = 1e-5) -> Tensor:
    """Y = x̂ ⊙ w + b, x̂ = (x - mean) / √(var + eps) along the last axis (arXiv 1607.06450, eq. 3)."""
    _check_norm("layer_norm", x, weight)
    backend = active()
    w = weight.data
    x_hat, scale = backend.layer_norm(x.data, eps)
    y = x_hat * w
    if bias is not None:
        y += bias.data
    return record(
        y,
        (x, lambda g: backend.layer_norm_backward(g * w, x_hat, scale)),
        (weight, lambda g: backend.column_sum(_flat(g * x_hat))),
        (bias, lambda g: backend.column_sum(_flat(g))),
    )


def rms_norm(x: Tensor, weight: Tensor, eps: float = 1e-5) -> Tensor:
    """Y = x̂ ⊙ w, x̂ = x / √(mean(x²) + eps) along the last axis (arXiv 1910.07467, eq. 4)."""
    _check_norm("rms_norm", x, weight)
    backend = active()
    w = weight.data
    x_hat, scale = backend.rms_norm(x.data, eps)
    return record(
        x_hat * w,
        (x, lambda g: backend.rms_norm_backward(g * w, x_hat, scale)),
        (weight, lambda g: backend.column_sum(_flat(g * x_hat))),
    )


def gelu(x: Tensor, approximate: str = "none") -> Tensor:
    """x·Φ(x) with the exact Φ, or its tanh approximation for `approximate="tanh"` (arXiv 1606.08415, section 2)."""
    if approximate not in ("none", "tanh"):
        raise UserError(f"gelu: approximate is 'none' or 'tanh', not {approximate!r}.")
    needed = x.requires_grad and grad_enabled()
    y, slope = active().gelu(x.data, tanh=approximate == "tanh", slope=needed)
    return record(y, (x, lambda g: g * slope))


def silu(x: Tensor) -> Tensor:
    """x·σ(x)."""
    y, slope = active().silu(x.data)
    return record(y, (x, lambda g: g * slope))


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) ⊙ up (arXiv 2002.05202, eq. 6), one node that keeps two arrays: silu(gate) and up ⊙ silu'(gate)."""
    y, slope = active().silu(gate.data)
    u = up.data
    if gate.requires_grad and grad_enabled():
        slope *= u
    return record(y * u, (gate, lambda g: g * slope), (up, lambda g: g * y))


def softmax(x: Tensor) -> Tensor:
    """exp(x) / Σ exp(x) along the last axis."""
    backend = active()
    p = backend.softmax(x.data.copy())
    return record(p, (x, lambda g: backend.softmax_backward(p, g.copy())))


def cross_entropy(logits: Tensor, targets: Any, ignore_index: int = -100, reduction: str = "mean") -> Tensor:
    """-log softmax(logits)_target, averaged ("mean") or summed ("sum") over the targets that count.

    Args:
        logits: (..., classes).
        targets: integer array (...), on the host if nothing is to wait for it; entries equal to `ignore_index` count for
            nothing.

    Raises:
        UserError: the shapes do not fit, a class is no integer or out of range, or every target is ignored.
    """
    backend = active()
    classes = logits.shape[-1]
    if tuple(targets.shape) != logits.shape[:-1]:
        raise UserError(f"cross_entropy: targets {tuple(targets.shape)} do not fit logits {logits.shape}.")
    if reduction not in ("mean", "sum"):
        raise UserError(f"cross_entropy: reduction is 'mean' or 'sum', not {reduction!r}.")
    host = backend.to_numpy(targets).reshape(-1)
    counted = host != ignore_index
    count = int(counted.sum())
    if not count:
        raise UserError("cross_entropy: every target is ignored, so there is no loss.")
    check_range("class", host[counted], classes)
    y = backend.asarray(host * counted)  # an ignored row is computed for class 0 and weighted with zero
    losses, derivative = backend.cross_entropy(logits.data.reshape(-1, classes), y)
    scale = 1 / count if reduction == "mean" else 1.0
    if count == host.size:
        loss = losses.sum() * scale
    else:
        keep = backend.asarray(counted, dtype=losses.dtype)
        loss = (losses * keep).sum() * scale
        derivative *= keep[:, None]
    shape = logits.shape
    return record(
        backend.asarray(loss, dtype=losses.dtype),
        (logits, lambda g: (derivative * (g * scale)).reshape(shape)),
    )


def embedding(weight: Tensor, ids: Any) -> Tensor:
    """Rows of a table: (vocab, d) and integer ids (...), best on the host, where they are checked -> (..., d).

    Raises:
        UserError: an id is no integer, negative, or not below vocab.
    """
    backend = active()
    host = backend.to_numpy(ids)  # where batches come from; a device array would make us wait for it
    check_range("token id", host, weight.shape[0])
    return record(
        weight.data[backend.asarray(host)],
        (weight, lambda g: Partial(*backend.scatter_rows(host.reshape(-1), _flat(g)))),
    )


def unembed(x: Tensor, weight: Tensor) -> Tensor:
    """Y = X Eᵀ: (..., d) and the table E (vocab, d) -> (..., vocab), logits from tied embeddings (arXiv 1608.05859).

    dX = g E, dE = gᵀ X.
    """
    if x.shape[-1:] != weight.shape[1:]:
        raise UserError(f"unembed: input {x.shape} does not fit a table {weight.shape}; needs (..., d) and (vocab, d).")
    backend, E = active(), weight.data
    X = _flat(x.data)
    return record(
        backend.matmul(X, E.T).reshape(*x.shape[:-1], E.shape[0]),
        (x, lambda g: backend.matmul(g, E)),
        (weight, lambda g: Product(_flat(g).T, X)),
    )


def dropout(x: Tensor, p: float, training: bool = True) -> Tensor:
    """Each element zero with probability p, the others divided by 1 - p; the input itself unless `training`."""
    if not 0 <= p < 1:
        raise UserError(f"dropout: p is a probability in [0, 1), not {p}.")
    if not training or p == 0:
        return x
    keep = active().dropout_mask(x.shape, p, random.dropout_key())
    scale = 1 / (1 - p)
    return record(x.data * keep * scale, (x, lambda g: g * keep * scale))


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    heads: int,
    mask: Array | None = None,
    causal: bool = False,
    dropout_p: float = 0.0,
    kv_heads: int | None = None,
) -> Tensor:
    """Multi-head softmax(Q Kᵀ/√d_h) V (arXiv 1706.03762, eq. 1): (batch, seq, d) three times -> (batch, seq, d).

    The heads are strided views of q, k and v: nothing is copied, not for groups either. One node keeps q, k, v and the
    probabilities.

    Args:
        q: queries; `k` and `v` may have another seq.
        k: keys, (batch, seq, kv_heads · d_h).
        v: values, likewise.
        heads: divides d into heads of d_h = d / heads.
        mask: (batch, seq of k), nonzero where a key may be attended to; None for all.
        causal: position i sees the keys up to i alone.
        dropout_p: probability with which an attention weight is dropped.
        kv_heads: heads of keys and values, each shared by a group of heads / kv_heads query heads (arXiv 2305.13245);
            None for as many as query heads.
    """
    kv = kv_heads or heads
    if q.shape[-1] % heads or heads % kv or k.shape != v.shape or q.shape[-1] * kv != k.shape[-1] * heads:
        raise UserError(f"attention: q {q.shape}, k {k.shape}, v {v.shape} do not fit {heads} heads over {kv}.")
    backend, xp = active(), active().xp
    scale = 1 / math.sqrt(q.shape[-1] // heads)
    many, one = ((kv,), (kv,)) if kv == heads else ((kv, heads // kv), (kv, 1))  # the axes of heads: of q, of k and v
    Q, K, V = _heads(q.data, *many), _heads(k.data, *one), _heads(v.data, *one)  # (batch, heads, seq, d_h)

    scores = backend.matmul(Q, K.swapaxes(-1, -2))  # (batch, heads, seq, seq)
    seen = None if mask is None else backend.asarray(mask)
    P = backend.attention_weights(scores.reshape(q.shape[0], heads, *scores.shape[-2:]), scale, seen, causal)
    P = P.reshape(scores.shape)
    keep = backend.dropout_mask(P.shape, dropout_p, random.dropout_key()) if dropout_p else None
    kept_scale = 1 / (1 - dropout_p)

    def thin(weights: Array) -> Array:
        return weights if keep is None else weights * keep * kept_scale

    out = xp.empty(q.shape, dtype=q.dtype)
    backend.matmul(thin(P), V, out=_heads(out, *many))
    needs = tuple(t.requires_grad for t in (q, k, v))

    def vjp(g: Array) -> tuple[Array | None, ...]:
        G = _heads(g, *many)
        dq = dk = dv = None
        if needs[2]:
            dv = over_group(thin(P), G)
        if needs[0] or needs[1]:
            dS = backend.softmax_backward(P, thin(backend.matmul(G, V.swapaxes(-1, -2))))
            if needs[0]:
                dq = xp.empty(q_shape, dtype=g.dtype)
                backend.matmul(dS, K, out=_heads(dq, *many))
                dq *= scale
            if needs[1]:
                dk = over_group(dS, Q)
                dk *= scale
        return dq, dk, dv

    def over_group(weights: Array, x: Array) -> Array:
        """Σ over each group of weightsᵀ x, as an array of v's shape."""
        total = xp.empty(v_shape, dtype=x.dtype)
        if kv == heads:
            backend.matmul(weights.swapaxes(-1, -2), x, out=_heads(total, kv))
        else:
            xp.sum(backend.matmul(weights.swapaxes(-1, -2), x), axis=2, keepdims=True, out=_heads(total, *one))
        return total

    q_shape, v_shape = q.shape, v.shape
    return record(out, ((q, k, v), vjp))


def check_range(what: str, ids: Any, limit: int) -> None:
    """Refuse ids outside [0, limit): negative ones would count from the end, and a GPU wraps the others silently.

    Ids of another dtype are refused as well: an array of booleans would pick rows as a mask.
    """
    if ids.dtype.kind not in "iu":
        raise UserError(f"{what}: integers are needed, not {ids.dtype}.")
    if ids.size and (ids.min() < 0 or ids.max() >= limit):
        bad = int(ids.min()) if ids.min() < 0 else int(ids.max())
        raise UserError(f"{what} {bad} is out of range; valid ones are 0 to {limit - 1}.")


def _flat(x: Array) -> Array:
    """(..., d) -> (n, d)."""
    return x.reshape(-1, x.shape[-1])


def _heads(x: Array, *heads: int) -> Array:
    """(batch, seq, d) -> (batch, heads, seq, d/heads), or (batch, kv, group, seq, d/heads) for two numbers; a view."""
    x = x.reshape(*x.shape[:2], *heads, -1)
    return x.swapaxes(1, 2) if len(heads) == 1 else x.transpose(0, 2, 3, 1, 4)


def _check_norm(name: str, x: Tensor, weight: Tensor) -> None:
    if x.shape[-1:] != weight.shape:
        raise UserError(f"{name}: the last axis of {x.shape} does not fit weight {weight.shape}.")
