"""Which engine fits, and what DeepSpeed's cannot do. That they take the same steps: test_distributed.py."""

import pytest
import torch

from benchmark.errors import UserError
from benchmark.experiments.engine_choice import MEMORY_SHARE, Weights, chosen_engine
from benchmark.training.zero import zero_settings


def test_the_engine_is_the_first_that_fits():
    gigabyte, llm, seven = 10**9, 2_200_000_000, 13_500_000_000  # two of 1.1 and of 7 billions

    def chosen(weights, memory, processes, copies=2):
        choice = chosen_engine(Weights(weights, 0, weights - 10**8), memory, processes, copies=copies)
        return choice.engine, choice.offload

    assert chosen(llm, None, 1) == ("single", "none")
    assert chosen(llm, 80 * gigabyte, 1) == ("single", "none")
    assert chosen(llm, 80 * gigabyte, 2) == ("ddp", "none")
    assert chosen(llm, 40 * gigabyte, 8) == ("zero2", "none")
    assert chosen(llm, 24 * gigabyte, 8) == ("zero3", "none")
    assert chosen(llm, 40 * gigabyte, 1) == ("single", "optimizer")
    assert chosen(llm, 12 * gigabyte, 1) == ("single", "optimizer")
    assert chosen(llm, 12 * gigabyte, 1, copies=4) == ("zero3", "all")
    assert chosen(seven, 80 * gigabyte, 1) == ("single", "optimizer")
    assert chosen(seven, 80 * gigabyte, 8) == ("zero3", "none")
    assert chosen(seven, 80 * gigabyte, 2) == ("zero3", "optimizer")
    assert chosen(seven, 24 * gigabyte, 2) == ("zero3", "all")
    tables = chosen_engine(Weights(llm), 40 * gigabyte, 1, copies=2)  # no layers to be kept on the host
    assert (tables.engine, tables.offload) == ("zero2", "optimizer")


def test_the_memory_of_each_engine_counts_frozen_weights_too():
    weights = Weights(learned=100, frozen=20, learned_layers=80, frozen_layers=10)

    def bytes_of(memory, processes, copies=2):
        choice = chosen_engine(weights, memory / MEMORY_SHARE, processes, copies=copies)
        return choice.engine, choice.offload, choice.gpu, choice.host

    assert bytes_of(1680, 1) == ("single", "none", 16 * 100 + 4 * 20, 0)
    assert bytes_of(1679, 1) == ("single", "optimizer", 2 * 90 + 16 * 20 + 4 * 10, 16 * 80 + 4 * 10)
    assert bytes_of(1679, 1, copies=4) == ("single", "optimizer", 4 * 90 + 16 * 20 + 4 * 10, 16 * 80 + 4 * 10)
    assert bytes_of(1680, 4) == ("ddp", "none", 1680, 0)
    assert bytes_of(1679, 4) == ("zero2", "none", 12 * 100 + 4 * 20, 0)
    assert bytes_of(1279, 4) == ("zero3", "none", 24 / 4 * 100 + 4 / 4 * 20, 0)
    assert bytes_of(619, 4) == ("zero3", "optimizer", 4 / 4 * 100 + 4 / 4 * 20, 20 * 100)
    assert bytes_of(10, 4) == ("zero3", "all", 0, 24 * 100 + 4 * 20)


def test_what_an_engine_cannot_keep_on_the_host_is_said():
    with pytest.raises(UserError, match=r"offload: all needs execution.engine: zero3, and it is zero2"):
        zero_settings(2, "all", 10, torch.device("cpu"))
