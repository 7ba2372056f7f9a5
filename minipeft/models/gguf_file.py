"""GGUF files of Llama models (llama.cpp's format), by the `gguf` package: shape, tokenizer and dequantised weights.

llama.cpp turns neighbouring pairs of a head in its rotary positions, so its converter has put the rows of q and k into
another order; here the two halves of a head are paired (see autograd/rope.py), and the rows go back.
"""

from __future__ import annotations

from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from minipeft.data.bpe import byte_level
from minipeft.data.tokenize import Tokenizer
from minipeft.errors import UserError
from minipeft.models.llama import half_split

PARTS = {"token_embd.weight": "embed.word.weight", "output_norm.weight": "final_norm.weight"}
BLOCK = {
    "attn_norm": "attn_norm",
    "attn_q": "q_proj",
    "attn_k": "k_proj",
    "attn_v": "v_proj",
    "attn_output": "o_proj",
    "ffn_norm": "mlp_norm",
    "ffn_up": "up_proj",
    "ffn_gate": "gate_proj",
    "ffn_down": "down_proj",
}
SINGLE_DIGITS = {"default": False, "gpt-2": False, "smollm": True}  # how a text is cut before the merges
OTHERS = "Take another file of the model, for example Q4_1, Q8_0 or F16."
CONTROL = 3  # the type of a special token


def open_gguf(path: Path) -> GGUFFile:
    """The file at `path`. Its metadata are read once: SmolLM2's are a hundred thousand strings, and take seconds.

    Raises:
        UserError: as `GGUFFile`.
    """
    return _open(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=2)
def _open(path: Path, modified: int) -> GGUFFile:
    return GGUFFile(path)


class GGUFFile:
    """One file.

    Raises:
        UserError: the package `gguf` is missing, the file is damaged, or the model in it is no Llama.
    """

    def __init__(self, path: Path) -> None:
        try:
            import gguf
        except ImportError as error:
            raise UserError(
                f"{path.name} is a GGUF file: pip install 'minipeft[gguf]' to read it ({error})."
            ) from error
        self.path, self.gguf = path, gguf
        try:
            self.reader = gguf.GGUFReader(path)
        except (ValueError, IndexError, KeyError, OSError) as error:
            if "GGMLQuantizationType" in str(error):
                raise UserError(
                    f"{path} has a quantisation that the package gguf does not know ({error}). {OTHERS}"
                ) from error
            raise UserError(f"{path} is not a whole GGUF file ({error}). Fetch or copy it again.") from error
        if (kind := self._field("general.architecture")) != "llama":
            raise UserError(f"{path} holds a {kind!r} model; of GGUF files, this version reads 'llama' ones.")
        self.heads = int(self._field("llama.attention.head_count"))
        self.kv_heads = int(self._field("llama.attention.head_count_kv", self.heads))

    def hf_config(self) -> dict[str, Any]:
        """The shape, as a Hugging Face config.json of a Llama states it."""
        tensors = {tensor.name for tensor in self.reader.tensors}
        width = int(self._field("llama.embedding_length"))
        turned, scaling = (
            self._field("llama.rope.dimension_count", None),
            self._field("llama.rope.scaling.type", "none"),
        )
        if scaling != "none" or turned not in (None, width // self.heads):
            raise UserError(
                f"{self.path}: rotary positions with {scaling!r} scaling on {turned or 'all'} dimensions of a head; this "
                f"version has those without scaling, on all {width // self.heads} of them."
            )
        return {
            "model_type": "llama",
            "hidden_act": "silu",
            "vocab_size": len(self._tokens),
            "hidden_size": width,
            "num_hidden_layers": int(self._field("llama.block_count")),
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "intermediate_size": int(self._field("llama.feed_forward_length")),
            "max_position_embeddings": int(self._field("llama.context_length")),
            "rms_norm_eps": float(self._field("llama.attention.layer_norm_rms_epsilon")),
            "rope_theta": float(self._field("llama.rope.freq_base", 10000.0)),
            "tie_word_embeddings": "output.weight" not in tensors,
            "bos_token_id": self._field("tokenizer.ggml.bos_token_id", None),
            "eos_token_id": self._field("tokenizer.ggml.eos_token_id", None),
            "pad_token_id": self._field("tokenizer.ggml.padding_token_id", None),
            "torch_dtype": "float32",
        }

    def state(self) -> dict[str, Any]:
        """Every weight as a float32 array, under our names and in our layout.

        Raises:
            UserError: a tensor has a quantisation or a name that is not known.
        """
        state = {}
        for tensor in self.reader.tensors:
            try:
                array = self.gguf.quants.dequantize(tensor.data, tensor.tensor_type)
            except (NotImplementedError, ValueError, KeyError) as error:
                kind = getattr(tensor.tensor_type, "name", tensor.tensor_type)
                raise UserError(
                    f"{self.path}: tensor {tensor.name!r} is quantised as {kind}, which the package gguf cannot undo "
                    f"({error}). {OTHERS}"
                ) from error
            name = self._our_name(tensor.name)
            if name.endswith(("q_proj.weight", "k_proj.weight")):
                array = half_split(array, self.heads if "q_proj" in name else self.kv_heads)
            linear = name.endswith("_proj.weight") or name == "head.weight"
            state[name] = array.astype("float32", copy=False).T if linear else array.astype("float32", copy=False)
        return state

    @cached_property
    def _tokens(self) -> list[str]:
        tokens: list[str] = self._field("tokenizer.ggml.tokens")
        return tokens

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer in the metadata. Raises UserError for one that is not byte-level BPE of a known kind."""
        model, cut = self._field("tokenizer.ggml.model"), self._field("tokenizer.ggml.pre", "default")
        if model != "gpt2" or cut not in SINGLE_DIGITS:
            raise UserError(
                f"{self.path}: its tokenizer is {model!r} / {cut!r}; known: gpt2 / {', '.join(SINGLE_DIGITS)}."
            )
        tokens = self._tokens
        merges = [(a, b) for a, _, b in (line.partition(" ") for line in self._field("tokenizer.ggml.merges"))]
        types = self._field("tokenizer.ggml.token_type", [])
        settings: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast"}
        for ours, theirs in (
            ("bos_token", "bos"),
            ("eos_token", "eos"),
            ("pad_token", "padding"),
            ("unk_token", "unknown"),
        ):
            number = self._field(f"tokenizer.ggml.{theirs}_token_id", None)
            if number is not None:
                settings[ours] = tokens[int(number)]
        if template := self._field("tokenizer.chat_template", None):
            settings["chat_template"] = template
        special = [token for token, kind in zip(tokens, types, strict=False) if kind == CONTROL]
        vocab = {token: number for number, token in enumerate(tokens)}
        return byte_level(vocab, merges, special, settings, SINGLE_DIGITS[cut])

    def _our_name(self, theirs: str) -> str:
        part, _, leaf = theirs.rpartition(".")
        if theirs in PARTS:
            return PARTS[theirs]
        if theirs == "output.weight":
            return "head.weight"
        if part.startswith("blk."):
            _, n, name = part.split(".", 2)
            if name in BLOCK:
                return f"blocks.{n}.{BLOCK[name]}.{leaf}"
        raise UserError(f"{self.path}: tensor {theirs!r} is no part of a Llama.")

    def _field(self, name: str, *default: Any) -> Any:
        found = self.reader.get_field(name)
        if found is None:
            if default:
                return default[0]
            raise UserError(f"{self.path} lacks the field {name!r}: it is not a whole language model.")
        return found.contents()
