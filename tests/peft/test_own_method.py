"""A method of one's own, as a reader would write it: a few lines, and nothing of the core is touched."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
from tiny import DATA, FF, HEAD, LAYERS, PAD, TOTAL, D, bits, logits, tiny_model

from minipeft import Tensor, UserError, functional
from minipeft.nn import Module, Parameter
from minipeft.nn.layers import constant
from minipeft.peft import Method, PeftConfig, get_peft_model
from minipeft.training import Trainer, TrainingConfig, evaluate

# ---- one that trains weights which are there already: BitFit (arXiv 2106.10199)


@dataclass(frozen=True)
class BitFitConfig(PeftConfig):
    """Train the biases and nothing else."""

    peft_type: ClassVar[str] = "MY_BITFIT"

    def attach(self, model: Module) -> Method:
        for name, parameter in model.named_parameters():
            parameter.requires_grad = name.endswith(".bias")
        return Method()


# ---- one that adds something: a learned scale on each output of the value projections, after (IA)³ (arXiv 2205.05638)


@dataclass(frozen=True)
class ScaleConfig(PeftConfig):
    """V ← l ⊙ V with l ∈ R^d, one a block, 1 at the start."""

    peft_type: ClassVar[str] = "SCALE"

    def attach(self, model: Module) -> Method:
        return ScaleMethod(model)


class Scaled(Module):
    def __init__(self, linear: Module) -> None:
        self.linear, self.on = linear, True
        self.l = constant((linear.weight.shape[1],), 1.0)
        self.kept: tuple[np.ndarray, np.ndarray] | None = None

    def forward(self, x: Tensor) -> Tensor:
        y = functional.linear(x, self.linear.weight, self.linear.bias)
        return y * self.l if self.on and self.kept is None else y


class ScaleMethod(Method):
    def __init__(self, model: Module) -> None:
        self.owner = (model,)
        self.layers = {n: Scaled(m) for n, m in model.named_modules() if n.endswith("v_proj")}
        for name, layer in self.layers.items():
            model.set_submodule(name, layer)

    def enable(self, on: bool) -> None:
        for layer in self.layers.values():
            layer.on = on

    def merge(self) -> None:
        for layer in self.layers.values():
            if layer.kept is None:
                layer.kept = layer.linear.weight.data.copy(), layer.linear.bias.data.copy()
                layer.linear.weight.data *= layer.l.data
                layer.linear.bias.data *= layer.l.data

    def unmerge(self) -> None:
        for layer in self.layers.values():
            if layer.kept is not None:
                layer.linear.weight.data[...], layer.linear.bias.data[...] = layer.kept
                layer.kept = None

    def unload(self) -> None:
        for name, layer in self.layers.items():
            self.owner[0].set_submodule(name, layer.linear)


METHODS = {
    "bitfit": (BitFitConfig(), D + LAYERS * (7 * D + FF), 0),
    "scale": (ScaleConfig(), LAYERS * D, LAYERS * D),
}
each = pytest.mark.parametrize(("config", "trained", "added"), METHODS.values(), ids=METHODS)


@each
def test_counts_and_start(config: PeftConfig, trained: int, added: int) -> None:
    m = get_peft_model(tiny_model(), config)
    count = m.count_parameters()
    assert (count.head, count.method, count.total) == (HEAD, trained, TOTAL + added)
    assert np.array_equal(logits(m), logits(tiny_model()))


@each
def test_the_trainer_trains_it_and_resumes_it(config: PeftConfig, trained: int, added: int, tmp_path) -> None:
    def train(stop: int | None = None) -> dict[str, bytes] | None:
        m = get_peft_model(tiny_model(), config)
        frozen = {name: value for name, value in bits(m).items() if not dict(m.named_parameters())[name].requires_grad}

        def on_step(step: int, total: int, loss: object) -> None:
            if step == stop:
                raise InterruptedError

        settings = TrainingConfig(lr=0.01, epochs=2, batch_size=8, checkpoint_seconds=0)
        before = evaluate(m, DATA, PAD).loss
        Trainer(m, DATA, PAD, settings, tmp_path / f"{'stopped' if stop != 0 else 'whole'}.ckpt", None, on_step).run()
        assert evaluate(m, DATA, PAD).loss < before
        after = bits(m)
        assert {name: after[name] for name in frozen} == frozen
        return after

    whole = train(stop=0)
    with pytest.raises(InterruptedError):
        train(stop=7)
    assert train() == whole


def test_the_scale_switches_off_merges_and_unloads_through_the_same_calls() -> None:
    m = get_peft_model(tiny_model(), ScaleConfig())
    rng = np.random.default_rng(0)
    for layer in m.method.layers.values():
        layer.l.data += rng.standard_normal(D).astype(np.float32)
    weights, on = bits(m), logits(m)
    with m.disable_adapter():
        assert np.array_equal(logits(m), logits(tiny_model()))
    m.merge_adapter()
    np.testing.assert_allclose(logits(m), on, rtol=1e-4, atol=1e-5)
    m.unmerge_adapter()
    assert bits(m) == weights
    plain = m.merge_and_unload()
    assert plain.state_dict().keys() == tiny_model().state_dict().keys()
    np.testing.assert_allclose(logits(plain), on, rtol=1e-4, atol=1e-5)


def test_bitfit_inherits_what_is_said_of_methods_without_an_adapter() -> None:
    m = get_peft_model(tiny_model(), BitFitConfig())
    with pytest.raises(UserError, match="own weights"), m.disable_adapter():
        pass
    assert m.merge_and_unload() is m.model


def test_a_method_may_choose_which_part_of_the_head_it_trains() -> None:
    @dataclass(frozen=True)
    class HeadlessBitFit(BitFitConfig):
        def attach(self, model: Module) -> Method:
            method = super().attach(model)
            for parameter in model.head.parameters():
                parameter.requires_grad = False
            return method

        def head_parameters(self, model: Module) -> list[Parameter]:
            return [model.head.classifier.bias]

    count = get_peft_model(tiny_model(), HeadlessBitFit()).count_parameters()
    assert count.head == tiny_model().head.classifier.bias.numel()


def test_a_config_without_attach_says_so() -> None:
    @dataclass(frozen=True)
    class Nothing(PeftConfig):
        pass

    with pytest.raises(NotImplementedError, match="Nothing"):
        get_peft_model(tiny_model(), Nothing())
