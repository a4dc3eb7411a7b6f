"""YAML files as typed, validated settings; every mistake is one sentence that names the file and the key."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from benchmark.errors import UserError

Model = TypeVar("Model", bound=BaseModel)


class Settings(BaseModel):
    """Settings that never change and know no keys but their own."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def _parsed(text: str) -> Any:
    """What YAML says, by libyaml where PyYAML was built with it: ten times as fast."""
    return yaml.load(text, Loader=yaml.CSafeLoader) if yaml.__with_libyaml__ else yaml.safe_load(text)


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file that holds a mapping; anything else is a UserError that names the file and the line."""
    try:
        content = _parsed(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        known = ", ".join(sorted(p.stem for p in path.parent.glob("*.yaml"))) or "none"
        raise UserError(f"{path} does not exist; {path.parent} has: {known}") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} must hold a mapping of settings, and holds {type(content).__name__}")
    return content


def validated(kind: type[Model], content: Mapping[str, Any], where: str) -> Model:
    """content as a kind, or a UserError with every wrong key, what was expected, and where it stands."""
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        found = []
        for problem in error.errors():
            key = ".".join(str(part) for part in problem["loc"])
            message = "is not a known setting: remove it or mend its spelling"
            if problem["type"] != "extra_forbidden":
                message = problem["msg"].removeprefix("Value error, ")
                message = f"{message[:1].lower()}{message[1:]}"
            found.append(f"{key}: {message}" if key else message)
        raise UserError(f"{where}: {'; '.join(found)}") from error
