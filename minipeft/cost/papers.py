"""The figures of the papers beside what their own formulas give. Where the two differ, both are shown and nothing is bent.

Each row has a figure as it is printed and the count of the configuration that it is said to be of. Where a method and an
architecture are built here, the row names them as well, and a test counts the live code's shapes against the formula.
LoRA's counts leave the task head out (arXiv 2106.09685, table 2, and section F.1 on its baselines).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

from minipeft.peft import AdapterConfig, BitFitConfig, LoraConfig, PeftConfig, TopKConfig

M, K = 1e6, 1e3


def lora(d: int, r: int, matrices: int) -> int:
    """2 · (matrices) · d · r (arXiv 2106.09685, section F.1)."""
    return 2 * matrices * d * r


def adapters(d: int, r: int, count: int, norms: int = 0) -> int:
    """L_A · (2dr + r + d) + 2 · L_LN · d (arXiv 2106.09685, section 5.1; arXiv 1902.00751, section 2.1)."""
    return count * (2 * d * r + r + d) + 2 * norms * d


def blocks(d: int, count: int) -> int:
    """12d² + 13d a block: four d × d and two d × 4d matrices, their biases, two norms."""
    return count * (12 * d * d + 13 * d)


def encoder(d: int, layers: int, vocab: int, positions: int, types: int) -> int:
    """Three tables and a norm, the blocks, and the pooler."""
    return (vocab + positions + types) * d + 2 * d + blocks(d, layers) + d * d + d


def decoder(d: int, layers: int, vocab: int = 50257, positions: int = 1024) -> int:
    """Two tables, the blocks, and the final norm; the output matrix is the word table."""
    return (vocab + positions) * d + blocks(d, layers) + 2 * d


def biases(d: int, layers: int) -> int:
    """11d a block (q, k, v, o, 4d and d of the feed-forward part, two norms), and d of the embeddings' norm."""
    return 11 * d * layers + d


def adam(trained: int, frozen: int = 0) -> int:
    """Bytes at 2 a number: the weights, and Adam's m and v of those that are trained (arXiv 2106.09685, section 4.2)."""
    return 2 * (3 * trained + frozen)


def multiply_adds(N: int, R: int = 0) -> int:
    """Of a step through an N × N layer, a token: X W, dX and dW take N² each; W frozen beside A B, 2N² + 6NR."""
    return 2 * N * N + 6 * N * R if R else 3 * N * N


@dataclass(frozen=True)
class Row:
    """A figure of a paper.

    Attributes:
        what: model and method.
        printed: as the paper prints it, in units of `unit`.
        unit: 10⁶ for millions.
        setting: what it is the count of.
        value: the formula's.
        suffix: written after the figures.
        architecture: the preset, and `method` the config, with which the code here gives the same count.
    """

    what: str
    printed: str
    setting: str
    value: float
    unit: float = M
    suffix: str = "M"
    architecture: str = ""
    method: PeftConfig | None = None

    @property
    def step(self) -> float:
        """The unit of the last digit that is printed: 0.01 of 0.37; 10 of 40, which stands for a round number.

        Of a fraction, as 2/3, a hundredth.
        """
        if "/" in self.printed:
            return 0.01
        decimals = len(self.printed.partition(".")[2])
        zeros = len(self.printed) - len(self.printed.rstrip("0")) if not decimals else 0
        return 10.0 ** (zeros or -decimals)

    @property
    def verdict(self) -> str:
        """Says "yes" where the formula, rounded as the paper rounds, is what the paper prints; else how far off it is."""
        mine, theirs = self.value / self.unit, float(Fraction(self.printed))
        if round(mine / self.step) == round(theirs / self.step):
            return "yes"
        off = f"{100 * (mine / theirs - 1):+.2g} %"
        return (
            f"cut off, not rounded ({off})"
            if math.floor(mine / self.step) == round(theirs / self.step)
            else f"no: {off}"
        )


def _lora(model: str, preset: str, d: int, layers: int, r: int, printed: str, four: bool = False) -> Row:
    targets = ("q_proj", "k_proj", "v_proj", "o_proj") if four else ("q_proj", "v_proj")
    names = ", ".join(target[0] for target in targets)
    setting = f"{names} of {layers} blocks, d {d}, r {r}"
    method = LoraConfig(r=r, target_modules=targets)
    return Row(f"{model} LoRA", printed, setting, lora(d, r, layers * len(targets)), architecture=preset, method=method)


def _adapter(model: str, kind: str, preset: str, d: int, count: int, r: int, printed: str, norms: int = 0) -> Row:
    trained = f", {norms} norms" if norms else ""
    placement = {"H": "houlsby", "P": "pfeiffer"}.get(kind)
    method = AdapterConfig(r, placement=placement) if placement else None
    value = adapters(d, r, count, norms)
    setting = f"{count} adapters{trained}, d {d}, r {r}"
    return Row(f"{model} Adapter-{kind}", printed, setting, value, architecture=preset if method else "", method=method)


GPT3 = ("GPT-3", "H", "gpt3-175b", 12288, 192)
BASE, LARGE = "RoBERTa base", "RoBERTa large"
GPT3_ALL = decoder(12288, 96, positions=2048)
GPT3_LORA = lora(12288, 4, 192)
BERT_BASE, BERT_LARGE = encoder(768, 12, 30522, 512, 2), encoder(1024, 24, 30522, 512, 2)

LORA = (
    _lora(BASE, "roberta-base", 768, 12, 8, "0.3"),
    _lora(LARGE, "roberta-large", 1024, 24, 8, "0.8"),
    Row(f"{BASE} full", "125.0", "with the pooler", encoder(768, 12, 50265, 514, 1)),
    Row(f"{LARGE} full", "355.0", "with the pooler", encoder(1024, 24, 50265, 514, 1)),
    Row(f"{BASE} BitFit", "0.1", "all biases of the encoder", biases(768, 12), architecture="roberta-base",
        method=BitFitConfig()),
    _adapter(LARGE, "P", "roberta-large", 1024, 24, 16, "0.8"),
    _adapter(LARGE, "P", "roberta-large", 1024, 24, 64, "3.0"),
    _adapter(LARGE, "H", "roberta-large", 1024, 48, 8, "0.8"),
    _adapter(LARGE, "H", "roberta-large", 1024, 48, 64, "6.0"),
    _adapter("GPT-2 M", "L", "", 1024, 24, 6, "0.37", norms=24),
    _adapter("GPT-2 M", "L", "", 1024, 24, 224, "11.09", norms=24),
    _adapter("GPT-2 L", "L", "", 1280, 36, 8, "0.88", norms=36),
    _adapter("GPT-2 L", "L", "", 1280, 36, 248, "23.00", norms=36),
    Row("GPT-2 M top 2 layers", "25.19", "2 blocks, d 1024", blocks(1024, 2), architecture="gpt2-medium",
        method=TopKConfig(2, train_final_norm=False)),
    Row("GPT-2 L full", "774.03", "tied", decoder(1280, 36)),
    Row("GPT-2 M full", "354.92", "tied", decoder(1024, 24)),
    _lora("GPT-2 M", "gpt2-medium", 1024, 24, 4, "0.35"),
    *(_adapter(*GPT3, r, printed)
      for r, printed in ((1, "7.1"), (4, "21.2"), (8, "40.1"), (16, "77.9"), (64, "304.4"))),
    *(_lora("GPT-3", "gpt3-175b", 12288, 96, r, printed)
      for r, printed in ((1, "4.7"), (2, "9.4"), (4, "18.8"), (8, "37.7"), (64, "301.9"))),
    _lora("GPT-3", "gpt3-175b", 12288, 96, 64, "603.8", four=True),
    Row("GPT-3 checkpoint", "35", "LoRA, q, v, r 4, 2 bytes a number", 2 * GPT3_LORA, suffix="MB"),
    Row("GPT-3 training, full", "1.2", "measured; formula: weights, m, v, 2 bytes each", adam(GPT3_ALL), 1e12, "TB"),
    Row("GPT-3 training, LoRA", "350", "measured; formula: weights, and m, v of LoRA, q, v, r 4",
        adam(GPT3_LORA, GPT3_ALL), 1e9, "GB"),
    Row("GPT-3 training, saved", "2/3", "up to; formula: of these bytes",
        1 - adam(GPT3_LORA, GPT3_ALL) / adam(GPT3_ALL), 1, "of it"),
    Row("GPT-3 step, saved", "25", "of time, measured; formula: 2N² + 6NR multiply-adds of 3N², N 12288, R 4",
        100 * (1 - multiply_adds(12288, 4) / multiply_adds(12288)), 1, "%"),
)  # fmt: skip
HOULSBY = (
    Row("BERT base adapters", "2", "24 adapters, d 768, r 64, of the base",
        100 * adapters(768, 64, 24) / BERT_BASE, 1, "%"),
    Row("BERT base norms", "40", "25 norms, d 768", 2 * 25 * 768, K, "k"),
    Row("BERT large adapters", "8", "48 adapters, d 1024, r 256, of the base",
        100 * adapters(1024, 256, 48) / BERT_LARGE, 1, "%"),
)  # fmt: skip
PAPERS: dict[str, tuple[Row, ...]] = {"lora": (*LORA, *HOULSBY), "houlsby": HOULSBY}
