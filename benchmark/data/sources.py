"""What the data sets are and where they come from: the typed form of config/datasets.yaml."""

from __future__ import annotations

import re
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from benchmark.errors import UserError
from benchmark.settings import Settings, read_yaml, validated

TiedOrder = Literal["file", "reversed", "shuffled"]


class Filter(Settings):
    """Which interactions are frequent enough to be kept.

    one_pass: keep the rows whose item has at least item_count rows and whose user has at least user_count, both counted
    before anything is dropped; then drop the users left with fewer than user_count. Not iterated: an item may end
    below item_count (released HLLM code and Meta's generative-recommenders, Amazon Books).
    iterative: drop the rows of rarer items and users, count again, and so on until nothing is dropped: the k-core.
    """

    kind: Literal["one_pass", "iterative"]
    item_count: int = Field(ge=1)
    user_count: int = Field(ge=1)


class ExpectedCounts(Settings):
    """Counts after the filter and before a protocol drops its short users; a deviation stops the preparation.

    items: those with an interaction. candidates_meta: the catalogue under protocol meta.
    """

    users: int = Field(gt=0)
    items: int = Field(gt=0)
    interactions: int = Field(gt=0)
    candidates_meta: int | None = Field(None, gt=0)


class LabelDefinition(Settings):
    """Whether an interaction is positive, for models of clicks. column: of the interactions' file. positive_from: the
    smallest value that is positive, such as 4 of a rating from 1 to 5; without it, the column holds 0 and 1."""

    column: str
    positive_from: float | None = None


def _none_as_null(value: object) -> object:
    return None if value == "none" else value


def _list_as_mapping(value: object) -> object:
    """`[title, tag]` is short for `{title: title, tag: tag}`."""
    if isinstance(value, list) and all(isinstance(name, str) for name in value):
        return {name: name for name in value}
    return value


class DatasetDefinition(Settings):
    """One entry of config/datasets.yaml.

    folder: where the raw files are, relative to the current folder, or within an installed package if one is named.
    interactions, items: the two files. text_fields: the items' text, field -> column, in the order in which a text
    model reads them; without it, a csv data set has title and those of tag and description that its file has.
    missing_text: whether an item without text, or an interaction whose item has no record, is a bad row ("fail") or
    an item with empty text, as in the released code ("allow").
    event_times: whether the timestamps are times; False if they only order a user's events.
    tied_order: of a user's events with one timestamp: the "file" order, the file's "reversed", or "shuffled" by a fixed
    key. The last two are controls: they show what results owe to an order that the data do not tell.
    label: what makes an interaction positive; it changes nothing but the labels.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9_-]+$")
    reader: Literal["movielens", "csv"]
    package: str | None = None
    folder: Path
    interactions: str = "interactions.csv"
    items: str = "items.csv"
    text_fields: Annotated[dict[str, str] | None, BeforeValidator(_list_as_mapping)] = None
    missing_text: Literal["fail", "allow"] = "fail"
    event_times: bool = True
    tied_order: TiedOrder = "file"
    label: LabelDefinition | None = None
    filter: Annotated[Filter | None, BeforeValidator(_none_as_null)] = None
    licence: str
    terms: str | None = None
    expected: ExpectedCounts | None = None

    @model_validator(mode="after")
    def _text_fields(self) -> DatasetDefinition:
        if self.text_fields is None and self.reader != "csv":
            raise ValueError("text_fields: name the fields and their columns, such as {title: movie_title}")
        if self.text_fields is not None and "item_id" in self.text_fields:
            raise ValueError("text_fields: a field cannot be called item_id, the name of the id column")
        return self

    def decisive(self) -> dict[str, Any]:
        """What decides the prepared sequences and texts: all but licence, terms and label."""
        return self.model_dump(mode="json", exclude={"licence", "terms", "label"}, exclude_defaults=True)

    def files(self) -> tuple[Path, Path]:
        """The file of interactions and the file of items; both exist."""
        folder = self.folder.expanduser() if self.package is None else _package_folder(self.package, self.folder)
        for path in (folder / self.interactions, folder / self.items):
            if not path.is_file():
                mend = f"install {self.package} again" if self.package else "mend `folder` or put the file there"
                raise UserError(f"data set {self.name}: there is no file {path}; {mend}")
        return folder / self.interactions, folder / self.items


def _package_folder(package: str, folder: Path) -> Path:
    """A folder of an installed package, found without importing the package."""
    try:
        return Path(str(metadata.distribution(package).locate_file(folder)))
    except metadata.PackageNotFoundError as error:
        raise UserError(
            f"package {package}, which holds the raw data, is not installed; run `make .venv/.ready`"
        ) from error


def load_definitions(path: Path) -> dict[str, DatasetDefinition]:
    """The data sets of a file such as config/datasets.yaml, by name; a UserError names every wrong key."""
    definitions = {}
    for name, entry in read_yaml(path).items():
        where = f"{path}, data set {name}"
        if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9_-]+", name):
            raise UserError(f"{path}: {name!r} cannot name a data set; use letters, digits, - and _")
        if not isinstance(entry, dict):
            raise UserError(f"{where}: expected keys such as reader and folder, found {type(entry).__name__}")
        content: dict[str, Any] = entry
        if "name" in content:
            raise UserError(f"{where}: name: is not a known setting: the key of the entry is its name")
        definitions[name] = validated(DatasetDefinition, {"name": name, **content}, where)
    return definitions
