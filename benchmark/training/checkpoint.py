"""Files of a training run that are never seen half written: weights to rank, and the folder's lock."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from benchmark.errors import UserError
from benchmark.files import write_atomically


def save_weights(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write the weights as safetensors."""
    own = apart(tensors)
    write_atomically(path, lambda temporary: write_tensors(temporary, own))


def apart(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors as a file of safetensors wants them: on the host, each alone in its memory. Those that are so already
    are not copied: they may fill most of it."""
    own: dict[str, Tensor] = {}
    taken: set[int] = set()
    for name, tensor in tensors.items():
        there = tensor.detach().cpu().contiguous()
        storage = there.untyped_storage()
        if storage.nbytes() != there.nbytes or storage.data_ptr() in taken:
            there = there.clone()
        taken.add(there.untyped_storage().data_ptr())
        own[name] = there
    return own


def write_tensors(path: Path, tensors: dict[str, Tensor], notes: dict[str, str] | None = None) -> None:
    """Write a safetensors file. Raises OSError where the disk is full, which safetensors tells in another way."""
    try:
        save_file(tensors, path, metadata=notes)
    except SafetensorError as error:
        raise OSError(str(error)) from error


def copy_weights(path: Path, to: Path) -> None:
    """Without reading them: what they take in memory may not be there a second time."""
    _check_exists(path)
    write_atomically(to, lambda temporary: shutil.copyfile(path, temporary))


def _check_exists(path: Path) -> None:
    if not path.exists():
        raise UserError(f"{path} does not exist: train the run first")


def load_weights(path: Path) -> dict[str, Tensor]:
    _check_exists(path)
    try:
        return load_file(path)
    except Exception as error:  # safetensors raises its own type for truncated and foreign files
        raise UserError(
            f"{path} is no complete safetensors file ({error}); delete it and train the run again"
        ) from error


@contextmanager
def run_lock(folder: Path) -> Iterator[None]:
    """Hold the folder for one process; the lock ends with the process, however it ends, so none goes stale."""
    import fcntl

    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.seek(0)
            holder = file.read(200).strip() or "another process"
            raise UserError(f"{holder} is working in {folder}; wait for it or stop it") from error
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        yield
