"""The papers' figures: the formulas' counts digit by digit, and the same from the shapes of the code here."""

from __future__ import annotations

import pytest

from minipeft.autograd import Tensor
from minipeft.backend import active, random
from minipeft.backend.shape_backend import shapes_only
from minipeft.cost import count_flops
from minipeft.cost.count import count
from minipeft.cost.papers import GPT3_ALL, GPT3_LORA, HOULSBY, LORA, PAPERS, Row, adam, encoder, multiply_adds
from minipeft.cost.presets import PRESETS
from minipeft.nn import Linear
from minipeft.peft import AdapterConfig, FullConfig, LoraConfig, PeftConfig
from minipeft.peft.lora import LoRALinear

# (figure, as the paper prints it) -> the count by hand, and what is to be said of it
EXPECTED = {
    ("RoBERTa base LoRA", "0.3"): (294_912, "yes"),
    ("RoBERTa large LoRA", "0.8"): (786_432, "yes"),
    ("RoBERTa base full", "125.0"): (124_645_632, "no: -0.28 %"),
    ("RoBERTa large full", "355.0"): (355_359_744, "no: +0.1 %"),
    ("RoBERTa base BitFit", "0.1"): (102_144, "yes"),
    ("RoBERTa large Adapter-P", "0.8"): (811_392, "yes"),
    ("RoBERTa large Adapter-P", "3.0"): (3_171_840, "no: +5.7 %"),
    ("RoBERTa large Adapter-H", "0.8"): (835_968, "yes"),
    ("RoBERTa large Adapter-H", "6.0"): (6_343_680, "no: +5.7 %"),
    ("GPT-2 M Adapter-L", "0.37"): (368_784, "yes"),
    ("GPT-2 M Adapter-L", "11.09"): (11_089_152, "yes"),
    ("GPT-2 L Adapter-L", "0.88"): (875_808, "yes"),
    ("GPT-2 L Adapter-L", "23.00"): (23_002_848, "yes"),
    ("GPT-2 M top 2 layers", "25.19"): (25_192_448, "yes"),
    ("GPT-2 L full", "774.03"): (774_030_080, "yes"),
    ("GPT-2 M full", "354.92"): (354_823_168, "no: -0.027 %"),
    ("GPT-2 M LoRA", "0.35"): (393_216, "no: +12 %"),
    ("GPT-3 Adapter-H", "7.1"): (7_078_080, "yes"),
    ("GPT-3 Adapter-H", "21.2"): (21_234_432, "yes"),
    ("GPT-3 Adapter-H", "40.1"): (40_109_568, "yes"),
    ("GPT-3 Adapter-H", "77.9"): (77_859_840, "yes"),
    ("GPT-3 Adapter-H", "304.4"): (304_361_472, "yes"),
    ("GPT-3 LoRA", "4.7"): (4_718_592, "yes"),
    ("GPT-3 LoRA", "9.4"): (9_437_184, "yes"),
    ("GPT-3 LoRA", "18.8"): (18_874_368, "cut off, not rounded (+0.4 %)"),
    ("GPT-3 LoRA", "37.7"): (37_748_736, "yes"),
    ("GPT-3 LoRA", "301.9"): (301_989_888, "cut off, not rounded (+0.03 %)"),
    ("GPT-3 LoRA", "603.8"): (603_979_776, "no: +0.03 %"),
    ("GPT-3 checkpoint", "35"): (37_748_736, "no: +7.9 %"),
    ("GPT-3 training, full", "1.2"): (6 * 174_604_259_328, "no: -13 %"),
    ("GPT-3 training, LoRA", "350"): (2 * 174_604_259_328 + 6 * 18_874_368, "yes"),
    ("GPT-3 training, saved", "2/3"): (
        1 - (2 * 174_604_259_328 + 6 * 18_874_368) / (6 * 174_604_259_328),
        "yes",
    ),
    ("GPT-3 step, saved", "25"): (100 * (1 - 302_284_800 / 452_984_832), "no: +33 %"),
    ("BERT base adapters", "2"): (100 * 2_379_264 / 109_482_240, "yes"),
    ("BERT base norms", "40"): (38_400, "yes"),
    ("BERT large adapters", "8"): (100 * 25_227_264 / 335_141_888, "yes"),
}
BUILT = [row for row in LORA if row.architecture]


def test_every_figure_is_there_with_all_its_digits() -> None:
    assert {(row.what, row.printed): (row.value, row.verdict) for row in PAPERS["lora"]} == EXPECTED
    assert set(PAPERS["houlsby"]) <= set(PAPERS["lora"])


@pytest.mark.parametrize("row", BUILT, ids=lambda row: f"{row.what} {row.printed}")
def test_the_shapes_of_the_code_here_give_the_formulas_count(row: Row) -> None:
    assert row.method is not None
    assert count(PRESETS[row.architecture], row.method).parameters.method == row.value


@pytest.mark.parametrize(
    ("preset", "what"),
    [
        ("roberta-base", "RoBERTa base full"),
        ("roberta-large", "RoBERTa large full"),
        ("gpt2-medium", "GPT-2 M full"),
        ("gpt2-large", "GPT-2 L full"),
    ],
)
def test_and_so_do_those_of_the_whole_models(preset: str, what: str) -> None:
    d = PRESETS[preset].get("hidden_size")
    classifier = 2 * d + 2 if d else 0  # the pooler is the paper's, the classifier is not
    value = next(row.value for row in LORA if row.what == what)
    assert count(PRESETS[preset], FullConfig()).base - classifier == value


@pytest.mark.parametrize(("preset", "r", "row"), [("bert-base", 64, HOULSBY[0]), ("bert-large", 256, HOULSBY[2])])
def test_the_adapters_shares_of_bert(preset: str, r: int, row: Row) -> None:
    d = PRESETS[preset]["hidden_size"]
    counted = count(PRESETS[preset], AdapterConfig(r))
    assert 100 * counted.parameters.method / (counted.base - 2 * d - 2) == row.value


@pytest.mark.parametrize(
    ("config", "bytes_"), [(FullConfig(), adam(GPT3_ALL)), (LoraConfig(r=4), adam(GPT3_LORA, GPT3_ALL))], ids=str
)
def test_the_memory_of_gpt_3s_training_is_what_the_optimizer_here_holds(config: PeftConfig, bytes_: int) -> None:
    """Weights, m and v; 2 bytes a number there, 4 here."""
    counted = count(PRESETS["gpt3-175b"], config)
    weights = counted.base + (counted.parameters.method if counted.parameters.percent < 100 else 0)
    assert (4 * weights + counted.optimizer) / 2 == bytes_


@pytest.mark.parametrize(("N", "R"), [(12288, 4), (64, 8), (10, 1)])
def test_the_multiply_adds_of_a_layer_are_those_that_it_does(N: int, R: int) -> None:
    """A forward and a backward pass of 3 tokens, with the gradient going on below; 2 operations a multiply-add."""
    with shapes_only():
        for layer, expected in (
            (Linear(N, N), multiply_adds(N)),
            (LoRALinear(frozen(Linear(N, N)), LoraConfig(r=R), random.stream("init")), multiply_adds(N, R)),
        ):
            x = Tensor(active().xp.zeros((1, 3, N), dtype="float32"), requires_grad=True)
            with count_flops() as flops:
                layer(x).sum().backward()
            assert flops.flops == 2 * 3 * expected


def frozen(linear: Linear) -> Linear:
    for parameter in linear.parameters():
        parameter.requires_grad = False
    return linear


def test_the_base_of_the_shares_is_the_well_known_one() -> None:
    assert encoder(768, 12, 30522, 512, 2) == 109_482_240


def test_the_checkpoint_of_gpt_3_is_about_a_ten_thousandth() -> None:
    checkpoint = next(row.value for row in LORA if row.what == "GPT-3 checkpoint")
    assert 350e9 / checkpoint == pytest.approx(9_300, rel=0.01)
    assert 2 * count(PRESETS["gpt3-175b"], FullConfig()).base == pytest.approx(350e9, rel=0.01)
