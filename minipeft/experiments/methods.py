"""Methods as the command line writes them: "lora:8", "topk:2", "intrinsic:1000:sparse" -> a config and a learning rate."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from minipeft.errors import UserError, unknown
from minipeft.peft import (
    AdapterConfig,
    BitFitConfig,
    DoraConfig,
    FullConfig,
    HeadConfig,
    IA3Config,
    IntrinsicConfig,
    LoraConfig,
    LoraPlusConfig,
    PeftConfig,
    PissaConfig,
    PrefixTuningConfig,
    PromptTuningConfig,
    TopKConfig,
    VeraConfig,
)
from minipeft.peft.adapter import PLACEMENTS
from minipeft.peft.projection import PROJECTIONS


@dataclass(frozen=True)
class MethodSpec:
    """One row of the comparison: a family ("lora"), its setting ("8"), and how it is trained."""

    family: str
    setting: str
    config: PeftConfig
    lr: float

    @property
    def name(self) -> str:
        """As the command line writes it."""
        return f"{self.family}:{self.setting}" if self.setting else self.family


@dataclass(frozen=True)
class Family:
    """How "family:number:word:word" becomes a config. `number` says what the number is; "" where there is none."""

    number: str
    lr: float
    build: Callable[[int, list[str]], PeftConfig]
    words: tuple[str, ...] = ()


def _adapter(bottleneck: int, words: list[str]) -> PeftConfig:
    return AdapterConfig(bottleneck=bottleneck, placement=words[0] if words else "houlsby")


def _targets(words: list[str]) -> Any:
    """Of "q_proj+k_proj" or "all-linear"; query and value when nothing is said."""
    return words[0] if words == ["all-linear"] else tuple(words[0].split("+")) if words else ("q_proj", "v_proj")


def _lora(kind: type[LoraConfig]) -> Callable[[int, list[str]], PeftConfig]:
    return lambda r, words: kind(r=r, lora_alpha=2 * r, target_modules=_targets(words))


def _intrinsic(d: int, words: list[str]) -> PeftConfig:
    projections = [word for word in words if word != "said"]
    return IntrinsicConfig(
        d=d, projection=projections[0] if projections else "fastfood", structure_aware="said" in words
    )


TARGETS = ("q_proj+k_proj+...", "all-linear")
# The rates of full, head, topk, adapter and lora were searched with torch + peft on MiniLM; the others' are of the order
# that the papers use.
FAMILIES: dict[str, Family] = {
    "head": Family("", 5e-3, lambda n, words: HeadConfig()),
    "full": Family("", 6e-5, lambda n, words: FullConfig()),
    "topk": Family("K, the number of top blocks", 1e-4, lambda n, words: TopKConfig(n)),
    "adapter": Family("R, the width of the bottleneck", 1e-3, _adapter, PLACEMENTS),
    "lora": Family("r, the rank", 1e-3, _lora(LoraConfig), TARGETS),
    "dora": Family("r, the rank", 1e-3, _lora(DoraConfig), TARGETS),
    "pissa": Family("r, the rank", 1e-3, _lora(PissaConfig), TARGETS),
    "loraplus": Family("r, the rank", 1e-3, _lora(LoraPlusConfig), TARGETS),
    "vera": Family("r, the rank", 1e-2, lambda r, words: VeraConfig(r=r, target_modules=_targets(words)), TARGETS),
    "ia3": Family("", 1e-2, lambda n, words: IA3Config()),
    "bitfit": Family("", 1e-3, lambda n, words: BitFitConfig()),
    "prompt": Family("n, the number of virtual tokens", 1e-2, lambda n, words: PromptTuningConfig(n)),
    "prefix": Family("n, the number of virtual tokens", 1e-2, lambda n, words: PrefixTuningConfig(n)),
    "intrinsic": Family("d, the dimension of the subspace", 1e-3, _intrinsic, (*PROJECTIONS, "said")),
}


def parse_method(text: str, lr: float | None = None) -> MethodSpec:
    """Parse one method; `lr` replaces the family's learning rate.

    Raises:
        UserError: an unknown family or word, a number that is missing or is not one, or one that the config refuses.
    """
    family_name, *rest = text.strip().split(":")
    if family_name not in FAMILIES:
        raise unknown("method", family_name, FAMILIES, "For example: full, topk:2, adapter:16, lora:8, intrinsic:1000.")
    family = FAMILIES[family_name]
    number = 0
    if family.number:
        if not rest or not rest[0].lstrip("-").isdigit():
            given = repr(rest[0]) if rest else "nothing"
            raise UserError(f"{text!r}: after '{family_name}:' comes {family.number}, a whole number, not {given}.")
        number, rest = int(rest[0]), rest[1:]
    for word in rest:
        if word not in family.words and not (family.words == TARGETS and word):
            known = f" Known: {', '.join(family.words)}." if family.words else ""
            raise UserError(f"{text!r}: {family_name} does not know the word {word!r}.{known}")
    setting = ":".join([str(number)] * bool(family.number) + rest)
    return MethodSpec(family_name, setting, family.build(number, rest), family.lr if lr is None else lr)


def parse_methods(text: str, lrs: dict[str, float] | None = None) -> list[MethodSpec]:
    """Parse a comma-separated list; `lrs` gives learning rates by family. Raises UserError as `parse_method`."""
    specs = []
    for part in text.split(","):
        if part.strip():
            specs.append(parse_method(part, (lrs or {}).get(part.strip().split(":")[0])))
    if not specs:
        raise UserError("No methods given; for example: --methods full,topk:1,adapter:16,lora:8,intrinsic:1000.")
    names = [spec.name for spec in specs]
    if len(set(names)) < len(names):
        raise UserError(f"A method is named twice in {text!r}.")
    return specs
