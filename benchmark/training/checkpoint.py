"""Files of a training run that are never seen half written: the state to resume from and the best weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from benchmark.errors import UserError
from benchmark.files import write_atomically


def save_weights(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write the weights as safetensors."""
    own = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    write_atomically(path, lambda temporary: save_file(own, temporary))


def load_weights(path: Path) -> dict[str, Tensor]:
    if not path.exists():
        raise UserError(f"{path} does not exist: train the run first")
    try:
        return load_file(path)
    except Exception as error:  # safetensors raises its own type for truncated and foreign files
        raise UserError(
            f"{path} is no complete safetensors file ({error}); delete it and train the run again"
        ) from error


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Write the resumable state: tensors, numbers and strings in plain containers, so that loading runs no code.

    The state before it is kept beside it as `<name>.previous`, for the case that this one is damaged.
    """
    if path.exists():
        path.replace(path.with_name(path.name + ".previous"))
    write_atomically(path, lambda temporary: torch.save(state, temporary))


def load_state(path: Path, warn: Callable[[str], None]) -> dict[str, Any] | None:
    """The newest state that can be read, or None; a damaged one is named through warn and passed over."""
    for candidate in (path, path.with_name(path.name + ".previous")):
        if not candidate.exists():
            continue
        try:
            state: dict[str, Any] = torch.load(candidate, map_location="cpu", weights_only=True)
        except Exception as error:  # torch raises a handful of types for truncated files
            warn(f"{candidate} is damaged ({type(error).__name__}) and is passed over")
            continue
        return state
    return None


@contextmanager
def run_lock(folder: Path) -> Iterator[None]:
    """Hold the folder for one process; the lock ends with the process, however it ends, so none goes stale."""
    import fcntl

    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UserError(f"another process is working in {folder}; wait for it or stop it") from error
        yield
