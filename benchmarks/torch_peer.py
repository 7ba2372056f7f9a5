"""The peers' side of a step: torch in eager mode, with transformers and peft where they have the part.

SDPA attention, fused AdamW on the trainable parameters alone, frozen ones with `requires_grad=False`. Shape "bert" is
transformers' BertForSequenceClassification, "llama" its LlamaForCausalLM; "gpt" is a plain module written here, with
the names of ours. LoRA and adapters are small layers put around linear ones; the peer "peft" has Hugging Face PEFT's LoRA
instead. The intrinsic dimension is in torch_intrinsic.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.cases import CLIP, LR, WEIGHT_DECAY, Shape, Unsupported, inputs, split_method, threads
from benchmarks.torch_intrinsic import Subspace

LLAMAS = ("llama", "tied")
QUERY_VALUE = {**dict.fromkeys(("gpt", *LLAMAS), ("q_proj", "v_proj")), "bert": ("query", "value")}
SUBLAYER_ENDS = {
    **dict.fromkeys(("gpt", *LLAMAS), ("o_proj", "down_proj")),
    "bert": ("attention.output.dense", "output.dense"),
}
HEADS: dict[str, tuple[str, ...]] = {
    "gpt": ("head",),
    "llama": ("lm_head",),
    "tied": (),
    "bert": ("pooler", "classifier"),
}


class Embeddings(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.word = nn.Embedding(shape.vocab, shape.d)
        self.position = nn.Embedding(shape.positions, shape.d)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.word(ids) + self.position.weight[: ids.shape[1]]


class Block(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        d = shape.d
        self.heads = shape.heads
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(d, d) for _ in range(4))
        self.attn_norm, self.mlp_norm = nn.LayerNorm(d, 1e-5), nn.LayerNorm(d, 1e-5)
        self.up_proj, self.down_proj = nn.Linear(d, shape.d_ff), nn.Linear(shape.d_ff, d)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, seq, d = x.shape
        h = self.attn_norm(x)
        q, k, v = (
            f(h).view(batch, seq, self.heads, -1).transpose(1, 2) for f in (self.q_proj, self.k_proj, self.v_proj)
        )
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.o_proj(mixed.transpose(1, 2).reshape(batch, seq, d))
        return x + self.down_proj(F.gelu(self.up_proj(self.mlp_norm(x))))


class GPT(nn.Module):
    """The shape "gpt" with our names: only the weights of linear layers are transposed."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.embed = Embeddings(shape)
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        self.final_norm = nn.LayerNorm(shape.d, 1e-5)
        self.head = nn.Linear(shape.d, shape.vocab)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.upper(self.lower(ids, 0), 0)

    def lower(self, ids: torch.Tensor, cut: int) -> torch.Tensor:
        x = self.embed(ids)
        for block in self.blocks[:cut]:
            x = block(x)
        return x

    def upper(self, x: torch.Tensor, cut: int) -> torch.Tensor:
        for block in self.blocks[cut:]:
            x = block(x)
        return self.head(self.final_norm(x))


class LoRALinear(nn.Module):
    """linear(x) + s · x A B, as ours."""

    def __init__(self, linear: nn.Linear, r: int) -> None:
        super().__init__()
        self.linear, self.scale = linear, 2.0  # alpha = 2r
        self.A = nn.Parameter(torch.randn(linear.in_features, r) * 0.02)
        self.B = nn.Parameter(torch.zeros(r, linear.out_features))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x) + ((x @ self.A) * self.scale) @ self.B


class WithAdapter(nn.Module):
    """h + up(gelu(down(h))) for h = linear(x), before the residual sum, as ours."""

    def __init__(self, linear: nn.Linear, width: int) -> None:
        super().__init__()
        self.linear = linear
        self.down, self.up = nn.Linear(linear.out_features, width), nn.Linear(width, linear.out_features)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.linear(x)
        return h + self.up(F.gelu(self.down(h)))


def import_for(shape: Shape, peer: str) -> None:
    """Import what a step will need, so that it is counted as import time."""
    if shape.kind == "bert":
        from transformers import BertForSequenceClassification  # noqa: F401
    if shape.kind in LLAMAS:
        from transformers import LlamaForCausalLM  # noqa: F401
    if peer == "peft":
        import peft  # noqa: F401


def build_model(shape: Shape) -> nn.Module:
    """The model of a shape, with random weights and no method."""
    if shape.kind == "gpt":
        return GPT(shape)
    if shape.kind in LLAMAS:
        return build_llama(shape)
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        vocab_size=shape.vocab,
        hidden_size=shape.d,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        intermediate_size=shape.d_ff,
        max_position_embeddings=shape.positions,
        num_labels=shape.classes,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        attn_implementation="sdpa",
        pad_token_id=None,  # else token 0 is never trained: here it is a word like others
    )
    return BertForSequenceClassification(config)


def build_llama(shape: Shape) -> nn.Module:
    """transformers' Llama, with a head of its own or a tied one, as ours has."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=shape.vocab,
        hidden_size=shape.d,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        intermediate_size=shape.d_ff,
        max_position_embeddings=shape.positions,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 1e5},
        tie_word_embeddings=shape.kind == "tied",
        use_cache=False,
        attn_implementation="sdpa",
    )
    return LlamaForCausalLM(config)


def attach(model: nn.Module, kind: str, method: str, peer: str) -> nn.Module:
    """Freeze what the method freezes and add what it adds; the head is trained with every method."""
    family, number, _ = split_method(method)
    if peer == "peft":
        import peft

        config = peft.LoraConfig(
            r=number,
            lora_alpha=2 * number,
            target_modules=list(QUERY_VALUE[kind]),
            modules_to_save=list(HEADS[kind]) or None,
        )
        return peft.get_peft_model(model, config)
    model.requires_grad_(family == "full")
    if family == "topk":
        blocks = blocks_of(model)
        for block in blocks[len(blocks) - number :]:
            block.requires_grad_(True)
        if kind != "bert":
            (model.final_norm if kind == "gpt" else model.model.norm).requires_grad_(True)
    elif family == "lora":
        _wrap(model, QUERY_VALUE[kind], lambda linear: LoRALinear(linear, number))
    elif family == "adapter":
        _wrap(model, SUBLAYER_ENDS[kind], lambda linear: WithAdapter(linear, number))
    for name, module in model.named_modules():
        if name.rpartition(".")[2] in HEADS[kind]:
            module.requires_grad_(True)
    return model


def _wrap(model: nn.Module, ends: tuple[str, ...], make: Callable[[Any], nn.Module]) -> None:
    found = [name for name, _ in model.named_modules() if any(name.endswith(f".{end}") for end in ends)]
    for name in found:
        model.set_submodule(name, make(model.get_submodule(name)))


def blocks_of(model: Any) -> Any:
    """The list of blocks."""
    if isinstance(model, GPT):
        return model.blocks
    return model.bert.encoder.layer if hasattr(model, "bert") else model.model.layers


class Step:
    """Calling it makes one training step and returns the loss, the same as our `Step`'s."""

    def __init__(
        self, shape: Shape, method: str, peer: str = "torch", model: nn.Module | None = None, on_gpu: bool = False
    ) -> None:
        if on_gpu and not torch.cuda.is_available():
            raise Unsupported(f"{peer}: this torch has no usable CUDA.")
        self.device = torch.device("cuda" if on_gpu else "cpu")
        torch.manual_seed(0)
        torch.set_num_threads(threads())
        self.shape = shape
        family, number, self.cached = split_method(method)
        self.model = (
            attach(build_model(shape) if model is None else model, shape.kind, method, peer).to(self.device).train()
        )
        self.trained = [p for p in self.model.parameters() if p.requires_grad]
        self.subspace = Subspace(self.model, number) if family == "intrinsic" else None
        if self.subspace is not None:
            self.trained.append(self.subspace.theta_d)
        self.optimizer = torch.optim.AdamW(self.trained, lr=LR, weight_decay=WEIGHT_DECAY, fused=True)
        ids, labels = inputs(shape)
        self.host = torch.from_numpy(ids), torch.from_numpy(labels)
        self.ids, self.labels = (tensor.to(self.device) for tensor in self.host)
        self.hidden: Any = None
        self.cut = len(blocks_of(self.model)) - number if family == "topk" else 0

    def __enter__(self) -> Step:
        if self.cached:
            with torch.no_grad():
                self.hidden = self._lower()
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def __call__(self) -> Any:
        """One step; the loss as a 0-d tensor."""
        if self.device.type == "cuda":  # a training step brings its batch along, as ours does
            self.ids, self.labels = (tensor.to(self.device, non_blocking=True) for tensor in self.host)
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.loss()
        loss.backward()
        nn.utils.clip_grad_norm_(self.trained, CLIP)
        self.optimizer.step()
        return loss.detach()

    def wait(self) -> None:
        """Until the device has done all that was asked of it."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def device_mb(self) -> float:
        """What torch's pool holds on a GPU."""
        return torch.cuda.max_memory_reserved() / 1e6 if self.device.type == "cuda" else 0.0

    def loss(self) -> torch.Tensor:
        """The sum over the positions of a row, averaged over the rows."""
        logits = self._logits().flatten(0, -2)
        return F.cross_entropy(logits, self.labels.flatten(), reduction="sum") / len(self.labels)

    def count(self) -> dict[str, float]:
        """The number of trained parameters."""
        return {"trained": sum(p.numel() for p in self.trained)}

    def _logits(self) -> torch.Tensor:
        model: Any = self.model
        if self.subspace is not None:
            output = self.subspace.call(model, self.ids)
            return output if self.shape.kind == "gpt" else output.logits
        if self.shape.kind == "gpt":
            return model(self.ids) if self.hidden is None else model.upper(self.hidden, self.cut)
        if self.hidden is None:
            return model(input_ids=self.ids).logits
        x = self.hidden
        if self.shape.kind in LLAMAS:
            return model.lm_head(model.model.norm(self._llama_blocks(x, self.cut, len(blocks_of(model)))))
        for layer in blocks_of(model)[self.cut :]:
            x = _first(layer(x))
        return model.classifier(model.bert.pooler(x))

    def _lower(self) -> torch.Tensor:
        model: Any = self.model
        if self.shape.kind == "gpt":
            return model.lower(self.ids, self.cut)
        if self.shape.kind in LLAMAS:
            return self._llama_blocks(model.model.embed_tokens(self.ids), 0, self.cut)
        x = model.bert.embeddings(self.ids)
        for layer in blocks_of(model)[: self.cut]:
            x = _first(layer(x))
        return x

    def _llama_blocks(self, x: torch.Tensor, first: int, end: int) -> torch.Tensor:
        llama: Any = self.model
        turns = llama.model.rotary_emb(x, position_ids=torch.arange(x.shape[1], device=x.device)[None])
        for layer in blocks_of(llama)[first:end]:
            x = _first(layer(x, position_embeddings=turns))
        return x


def _first(output: Any) -> torch.Tensor:
    return output[0] if isinstance(output, tuple) else output  # a tuple before transformers 5
