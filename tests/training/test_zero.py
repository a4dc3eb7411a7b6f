"""Which engine fits, and what DeepSpeed's cannot do. That they take the same steps: test_distributed.py."""

import pytest
import torch

from benchmark.errors import UserError
from benchmark.experiments import ExecutionSettings, OptimizerSettings
from benchmark.processes import Processes
from benchmark.training.engines import chosen_engine, make_engine
from benchmark.training.objectives import InfoNCE, Temperature
from benchmark.training.zero import zero_settings
from tests.training.steps import build


def test_the_engine_is_the_first_that_fits():
    gigabyte, llm, seven = 10**9, 2_200_000_000, 13_500_000_000  # two of 1.1 and of 7 billions
    assert chosen_engine(llm, None, 1) == ("single", "none")
    assert chosen_engine(llm, 80 * gigabyte, 1) == ("single", "none")
    assert chosen_engine(llm, 80 * gigabyte, 2) == ("ddp", "none")
    assert chosen_engine(llm, 40 * gigabyte, 8) == ("zero2", "none")
    assert chosen_engine(llm, 24 * gigabyte, 8) == ("zero3", "none")
    assert chosen_engine(llm, 40 * gigabyte, 1) == ("zero2", "optimizer")
    assert chosen_engine(seven, 80 * gigabyte, 8) == ("zero3", "none")
    assert chosen_engine(seven, 80 * gigabyte, 2) == ("zero3", "optimizer")
    assert chosen_engine(seven, 24 * gigabyte, 2) == ("zero3", "all")


def test_what_an_engine_cannot_keep_on_the_host_is_said():
    with pytest.raises(UserError, match=r"offload: all needs execution.engine: zero3, and it is zero2"):
        zero_settings(2, "all", 10, torch.device("cpu"))
    optimizer = OptimizerSettings(learning_rate=0.1, weight_decay=0)
    execution = ExecutionSettings(engine="single", offload="optimizer")
    with pytest.raises(UserError, match=r"offload: optimizer needs .* zero3, not single"):
        make_engine(build("sasrec", 0.0), InfoNCE(Temperature()), optimizer, execution, torch.device("cpu"),
                    Processes(), 8)  # fmt: skip
