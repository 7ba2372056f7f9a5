"""glassllm's files (MIT): a Llama-style decoder of 0.85 M parameters in an .npz, and its tokenizer beside it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers

from minipeft.backend.storage import read_npz
from minipeft.data.tokenize import Tokenizer
from minipeft.errors import UserError
from minipeft.models.llama import half_split

PARTS = {"E": "embed.word.weight", "norm_f.gamma": "final_norm.weight"}
BLOCK = {
    "norm1.gamma": "attn_norm.weight",
    "attn.W_Q": "q_proj.weight",
    "attn.W_K": "k_proj.weight",
    "attn.W_V": "v_proj.weight",
    "attn.W_O": "o_proj.weight",
    "norm2.gamma": "mlp_norm.weight",
    "ffn.W1": "gate_proj.weight",
    "ffn.W3": "up_proj.weight",
    "ffn.W2": "down_proj.weight",
}
SPECIAL = ("<pad>", "<unk>", "<bos>", "<eos>")
SPACE = "▁"


def read_glass(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The shape, as a Hugging Face config.json of a Llama states it, and the weights under our names.

    Raises:
        UserError: the file is damaged, or lacks or has too much of something.
    """
    arrays = read_npz(path)
    try:
        config = json.loads(str(arrays.pop("__config__")))
        heads, kv_heads = config["n_heads"], config["n_kv_heads"]
        hf = {
            "model_type": "llama",
            "hidden_act": "silu",
            "vocab_size": config["vocab_size"],
            "hidden_size": config["d_model"],
            "num_hidden_layers": config["n_layers"],
            "num_attention_heads": heads,
            "num_key_value_heads": kv_heads,
            "intermediate_size": int(8 * config["d_model"] / 3),
            "max_position_embeddings": config["max_len"],
            "rms_norm_eps": config["eps"],
            "rope_theta": config["rope_base"],
            "tie_word_embeddings": True,
        }
    except (KeyError, ValueError, TypeError) as error:
        raise UserError(f"{path} is not a model of glassllm: its __config__ lacks or garbles {error}.") from error
    state = {}
    for name, array in arrays.items():
        state[_our_name(path, name)] = array.astype("float32")
    for name in state:  # its rotary positions turn neighbouring pairs
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            state[name] = half_split(state[name].T, heads if "q_proj" in name else kv_heads).T
    return hf, state


def read_glass_tokenizer(path: Path) -> Tokenizer | None:
    """The tokenizer of `NAME.npz`, in `NAME.tokenizer.json` beside it; None when that is missing.

    Characters are merged within chunks: a line break, or a run of spaces with the word after it.
    """
    file = path.with_name(f"{path.stem}.tokenizer.json")
    if not file.exists():
        return None
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
        merges = [(str(a), str(b)) for a, b in data["merges"]]
        tokens = [*SPECIAL, *data["alphabet"], *(a + b for a, b in merges)]
        vocab = {token: number for number, token in enumerate(tokens)}
        fast = tokenizers.Tokenizer(models.BPE(vocab, merges, unk_token="<unk>"))
    except Exception as error:  # the library raises plain Exception
        raise UserError(f"{file} is not a tokenizer of glassllm ({error}). Fetch or copy it again.") from error
    fast.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Replace(" ", SPACE)])
    chunks = tokenizers.Regex(rf"\n|{SPACE}*[^{SPACE}\n]+|{SPACE}+")
    fast.pre_tokenizer = pre_tokenizers.Split(chunks, behavior="isolated")
    fast.decoder = decoders.Sequence([decoders.Fuse(), decoders.Replace(SPACE, " ")])
    fast.add_special_tokens(list(SPECIAL))
    settings = {"pad_token": "<pad>", "unk_token": "<unk>", "bos_token": "<bos>", "eos_token": "<eos>"}
    return Tokenizer(fast, {"tokenizer_config.json": json.dumps(settings) + "\n"})


def _our_name(path: Path, theirs: str) -> str:
    if theirs in PARTS:
        return PARTS[theirs]
    first, _, rest = theirs.partition(".")
    n, _, part = rest.partition(".")
    if first == "blocks" and n.isdigit() and part in BLOCK:
        return f"blocks.{n}.{BLOCK[part]}"
    raise UserError(f"{path}: {theirs!r} is no part of a model of glassllm.")
