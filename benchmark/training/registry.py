"""From a run's settings to its model: the class is named in config/methods/*.yaml, never in code."""

from __future__ import annotations

import dataclasses
import importlib
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from benchmark.errors import UserError
from benchmark.recommender import Catalogue, SequentialRecommender
from benchmark.training.architectures import without_pretrained_weights

PACKAGES = ("models", "baselines")


def method_class(path: str) -> type[SequentialRecommender]:
    """`models.hllm.HLLM` -> the class; only classes of this project's own packages are looked up."""
    module_name, _, name = path.rpartition(".")
    if module_name.split(".")[0] not in PACKAGES:
        raise UserError(f"class {path!r} is not in {' or '.join(PACKAGES)}: put the method there")
    try:
        found = getattr(importlib.import_module(module_name), name)
    except (ModuleNotFoundError, AttributeError) as error:
        raise UserError(f"class {path!r} cannot be found ({error}): mend `class` in config/methods") from error
    if not (isinstance(found, type) and issubclass(found, SequentialRecommender)):
        raise UserError(f"{path!r} is not a SequentialRecommender: mend `class` in config/methods")
    return found


def model_settings(path: str, settings: Mapping[str, Any], where: str) -> Any:
    """The class's Settings from plain values; unknown keys and wrong types are one sentence that names them."""
    kind = method_class(path).Settings
    if unknown := _unknown_keys(kind, settings, "model"):
        raise UserError(f"{where}: {path} has no setting {unknown}")
    try:
        return TypeAdapter(kind).validate_python(dict(settings))
    except ValidationError as error:
        problems = "; ".join(f"model.{'.'.join(map(str, p['loc']))}: {p['msg']}" for p in error.errors())
        raise UserError(f"{where}: {problems}") from error


def _unknown_keys(kind: Any, settings: Mapping[str, Any], prefix: str) -> str:
    hints = typing.get_type_hints(kind)
    for key, value in settings.items():
        if key not in hints:
            return f"{prefix}.{key}; it has: {', '.join(hints)}"
        inner = [t for t in (hints[key], *typing.get_args(hints[key])) if dataclasses.is_dataclass(t)]
        if (
            isinstance(value, Mapping)
            and len(inner) == 1
            and (found := _unknown_keys(inner[0], value, f"{prefix}.{key}"))
        ):
            return found
    return ""


def build(
    path: str,
    settings: Mapping[str, Any],
    catalogue: Catalogue,
    sequence_length: int,
    *,
    pretrained: bool = True,
    kept: Path | None = None,
) -> SequentialRecommender:
    """The untrained model of a run; what a method cannot be built from is a UserError in the method's own words.

    pretrained: False reads no pre-trained weights, for a model that is given all of its weights next. kept: folder of
    the trained run that they are from, where the configurations of its language models may lie.
    """
    kind, values = method_class(path), model_settings(path, settings, path)
    if not pretrained:
        values = without_pretrained_weights(values, kept)
    try:
        return kind(catalogue, sequence_length, values)  # type: ignore[call-arg]
    except ValueError as error:
        raise UserError(f"{path}: {error}") from error
