"""A compiled module answers the questions that libraries ask a model."""

from __future__ import annotations

import inspect

from torch import Tensor, nn

from autopar.codegen.likeness import resemble


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.config = {"hidden": 3}
        self.loss_type = "ForCausalLM"
        self.other = 1

    def forward(self, tokens: Tensor, labels: Tensor | None = None) -> int:
        return 0


class Compiled(nn.Module):
    def forward(self, *args: object, **kwargs: object) -> tuple[object, ...]:
        return self, args, kwargs


def test_class_signature_and_config_are_those_of_the_model() -> None:
    model, compiled = Model(), Compiled()
    resemble(compiled, model)
    assert isinstance(compiled, Compiled)
    assert type(compiled).__name__ == "Model"
    assert inspect.signature(compiled.forward) == inspect.signature(model.forward)
    assert list(inspect.signature(type(compiled).forward).parameters) == ["self", "tokens", "labels"]
    assert (compiled.config, compiled.loss_type) == (model.config, "ForCausalLM")
    assert not hasattr(compiled, "other")
    assert compiled(1, labels=2) == (compiled, (1,), {"labels": 2})
    assert type(Compiled()) is Compiled, "only this module"


def test_resembling_twice_is_resembling_once() -> None:
    model, compiled = Model(), Compiled()
    resemble(compiled, model)
    once = type(compiled)
    resemble(compiled, model)
    assert type(compiled) is once
