"""What RecBole 1.2.1 (2025) needs to run beside today's libraries, and what it must not do to the process it runs in.

RecBole was written for numpy 1 and for a process of its own: it renews numpy's old names, reads options from the
command line, hides GPUs, changes a YAML loader, seeds every random stream and writes TensorBoard files into the
working directory. Inside `recbole_compatible` it finds what it expects, and all of that is as before afterwards.

What is left alone: `ray`, which only `recbole.quick_start` imports, and `torch.load` of RecBole's pickled
checkpoints, which nobody needs who takes the weights from the trained module.
"""

from __future__ import annotations

import logging
import os
import random
import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import numpy as np
import recbole.trainer.trainer
import torch
import yaml

log = logging.getLogger(__name__)

# RecBole's Config reads the first row, which numpy 2 removed, and sets the second, which the rest of RecBole reads.
_NUMPY_NAMES = {"float_": np.float64, "complex_": np.complex128, "unicode_": np.str_}
_NUMPY_NAMES_OF_CONFIG = ("bool", "int", "float", "complex", "object", "str", "long", "unicode")
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


@contextmanager
def recbole_compatible(device: torch.device | str = "cpu") -> Iterator[None]:
    """Within this context RecBole's configuration, data sets, trainer and evaluator run, and leave no trace.

    device: where RecBole trains; the state of its random stream is kept too.
    """
    with ExitStack() as stack:
        stack.enter_context(_numpy_names())
        stack.enter_context(_random_streams(torch.device(device)))
        stack.enter_context(_yaml_loader())
        stack.enter_context(_messages())
        stack.enter_context(patch.object(sys, "argv", sys.argv[:1]))  # any --name=value there would override a setting
        stack.enter_context(patch.dict(os.environ))  # Config sets CUDA_VISIBLE_DEVICES
        stack.enter_context(patch.object(recbole.trainer.trainer, "get_tensorboard", lambda _: LoggedScalars()))
        yield


class LoggedScalars:
    """Takes the place of the TensorBoard writer: progress goes to the log and no file is written."""

    def add_scalar(self, tag: str, value: float, step: int) -> None:
        # "Vaild_score" is RecBole's spelling; the training loss is the sum over the epoch's batches.
        name = {"Loss/Train": "sum of training losses", "Vaild_score": "validation score"}.get(tag, tag)
        log.info("epoch %d: %s %.4f", step + 1, name, value)

    def add_hparams(self, *_: Any) -> None:
        """Settings are recorded elsewhere."""


@contextmanager
def _numpy_names() -> Iterator[None]:
    names = (*_NUMPY_NAMES, *_NUMPY_NAMES_OF_CONFIG)
    before = {name: vars(np)[name] for name in names if name in vars(np)}
    for name, value in _NUMPY_NAMES.items():
        setattr(np, name, value)
    try:
        yield
    finally:
        for name in names:
            if name in before:
                setattr(np, name, before[name])
            elif name in vars(np):
                delattr(np, name)


@contextmanager
def _random_streams(device: torch.device) -> Iterator[None]:
    python, legacy_numpy = random.getstate(), np.random.get_state()
    cudnn = torch.backends.cudnn
    benchmark, deterministic = cudnn.benchmark, cudnn.deterministic
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(legacy_numpy)
        cudnn.benchmark, cudnn.deterministic = benchmark, deterministic


@contextmanager
def _yaml_loader() -> Iterator[None]:
    # Config teaches yaml.FullLoader to read 1e-3 as a number, for everyone in the process and once more every time.
    own = {first: list(rules) for first, rules in yaml.FullLoader.yaml_implicit_resolvers.items()}
    with patch.object(yaml.FullLoader, "yaml_implicit_resolvers", own):
        yield


@contextmanager
def _messages() -> Iterator[None]:
    """RecBole logs in colours to the root logger: name it and take the colours out. Old pandas idioms warn."""
    root = logging.getLogger()

    def plain(record: logging.LogRecord) -> bool:
        record.name, record.msg, record.args = "recbole", _COLOUR.sub("", record.getMessage()), None
        return True

    root.addFilter(plain)  # a logger's filter sees only what is logged to that very logger
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            yield
    finally:
        root.removeFilter(plain)
