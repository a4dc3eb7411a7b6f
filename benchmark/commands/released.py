"""The verb that takes over the authors' released checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from benchmark.commands.shared import configuration, log, log_to
from benchmark.errors import UserError


def import_released(
    file: Annotated[Path, typer.Argument(help="the checkpoint, such as pytorch_model.bin")],
    method: Annotated[str, typer.Option(help="a file of config/methods with the checkpoint's sizes, such as hllm-1b")],
    out: Annotated[Path, typer.Option(help="folder to write model.safetensors to")],
) -> None:
    """Read a checkpoint that a method's authors released, check every weight, and keep it as this project's own.

    Nothing in the file is executed. The table `released` ranks such files themselves, without training.
    """
    import torch

    from benchmark.provenance import git_revision, write_json
    from benchmark.recommender import Catalogue
    from benchmark.training import registry
    from benchmark.training.checkpoint import save_weights
    from benchmark.training.starting import file_sha256

    log_to(None, method)
    found = configuration().method(method)
    settings = _sizes_alone(found.model, f"config/methods/{method}.yaml")
    vocabulary = settings.get("item_model", {}).get("config", {}).get("vocab_size", 0)
    text = Catalogue(1, torch.zeros(1, dtype=torch.int32), torch.tensor([0, 1]), vocabulary)
    with torch.device("meta"):  # shapes without memory
        model = registry.build(found.class_, settings, text, 1)
    try:
        weights = model.released_state(file)
    except ValueError as error:
        raise UserError(str(error)) from error
    save_weights(out / "model.safetensors", weights)
    origin = {"file": file.name, "sha256": file_sha256(file), "method": method, "git_revision": git_revision()}
    write_json(out / "provenance.json", {"imported": origin})
    log.info("%d weights of %s in %s", len(weights), file, out / "model.safetensors")


def _sizes_alone(model: dict[str, Any], where: str) -> dict[str, Any]:
    """The model's settings with architectures that are built from their `config` and not from a pre-trained model."""
    result = dict(model)
    for role in ("item_model", "user_model"):
        if role not in model or model[role].get("source", "scratch") == "scratch":
            continue
        if "model_type" not in model[role].get("config", {}):
            raise UserError(f"{where}: model.{role}.config names no model_type, so its sizes are not known")
        kept = {key: value for key, value in model[role].items() if key in ("config", "layers", "frozen")}
        result[role] = {"source": "scratch", **kept}
    return result
