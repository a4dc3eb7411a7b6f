"""Which engine `execution.engine: auto` takes, by the memory of a GPU: the one rule of training and of plans."""

from __future__ import annotations

from dataclasses import dataclass

from benchmark.experiments.run import EngineName, Offload

MEMORY_SHARE = 0.6  # of a GPU's memory that weights, gradients and moments may take; activations need the rest


@dataclass(frozen=True)
class Weights:
    """How many weights a model has: learned and frozen ones, and of each those of heavy layers."""

    learned: int
    frozen: int = 0
    learned_layers: int = 0
    frozen_layers: int = 0


@dataclass(frozen=True)
class EngineChoice:
    """gpu, host: bytes of weights, gradients and moments, of a GPU and of the hosts of all processes together."""

    engine: EngineName
    offload: Offload
    gpu: float
    host: float = 0.0


def chosen_engine(weights: Weights, memory: float | None, processes: int, *, copies: int) -> EngineChoice:
    """The engine that exchanges least among those whose part of the model fits the GPU.

    memory: bytes of a GPU, None on the CPU, where everything is taken to fit; copies: bytes of a weight that heavy
    layers read where it is kept on the host.
    """
    learned, frozen = weights.learned, 4 * weights.frozen
    layers, frozen_layers = weights.learned_layers, 4 * weights.frozen_layers
    # Bytes a weight: the weight, its gradient and two moments, 4 each. ZeRO updates a second copy of the weights, and
    # collects gradients for it.
    plain = EngineChoice("ddp" if processes > 1 else "single", "none", 16 * learned + frozen)
    if memory is None:
        return plain
    choices = [plain]
    if processes > 1:
        choices += [
            EngineChoice("zero2", "none", (8 + 16 / processes) * learned + frozen),
            EngineChoice("zero3", "none", (24 * learned + frozen) / processes),
        ]
    else:
        read = copies * (layers + weights.frozen_layers)
        rest = 16 * (learned - layers) + frozen - frozen_layers
        choices += [EngineChoice("single", "optimizer", read + rest, 16 * layers + frozen_layers)]
    choices += [
        EngineChoice("zero2", "optimizer", 8 * learned + frozen, 16 * learned),
        EngineChoice("zero3", "optimizer", (4 * learned + frozen) / processes, 20 * learned),
    ]
    fitting = (choice for choice in choices if choice.gpu <= MEMORY_SHARE * memory)
    return next(fitting, EngineChoice("zero3", "all", 0.0, 24 * learned + frozen))
