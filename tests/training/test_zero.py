"""Which engine fits, and what DeepSpeed's cannot do. That they take the same steps: test_distributed.py."""

import pytest
import torch

from benchmark.errors import UserError
from benchmark.training.engines import chosen_engine
from benchmark.training.zero import zero_settings


def test_the_engine_is_the_first_that_fits():
    gigabyte, llm, seven = 10**9, 2_200_000_000, 13_500_000_000  # two of 1.1 and of 7 billions

    def chosen(weights, memory, processes, copies=2):
        return chosen_engine(weights, memory, processes, heavy=weights - 10**8, copies=copies)

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
    tables = chosen_engine(llm, 40 * gigabyte, 1, heavy=0, copies=2)  # no layers to be kept on the host
    assert tables == ("zero2", "optimizer")


def test_what_an_engine_cannot_keep_on_the_host_is_said():
    with pytest.raises(UserError, match=r"offload: all needs execution.engine: zero3, and it is zero2"):
        zero_settings(2, "all", 10, torch.device("cpu"))
