"""What the data sets are and where they come from: the typed form of config/datasets.yaml."""

from __future__ import annotations

import difflib
import re
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

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


class RemoteFile(Settings):
    """Where a raw file can be had, at one of url, repository (a data set repository of the Hugging Face hub, at a
    revision) and drive_folder (the id of a public Google Drive folder, in which a file has the same name).

    path: within the repository, or the name of the file in a zip archive that url gives. bytes, sha256, md5: of the
    file that is fetched, where known; they are checked.
    """

    url: str | None = Field(None, pattern=r"^https?://")
    repository: str | None = None
    revision: str = "main"
    drive_folder: str | None = None
    path: str | None = None
    bytes: int | None = Field(None, gt=0)
    sha256: str | None = Field(None, pattern=r"^[0-9a-f]{64}$")
    md5: str | None = Field(None, pattern=r"^[0-9a-f]{32}$")

    @model_validator(mode="after")
    def _one_place(self) -> RemoteFile:
        if sum(place is not None for place in (self.url, self.repository, self.drive_folder)) != 1:
            raise ValueError("name one of url, repository and drive_folder")
        if self.repository is not None and self.path is None:
            raise ValueError("path: name the file within the repository")
        return self

    @property
    def place(self) -> str:
        """For people: where the file is."""
        if self.drive_folder is not None:
            return f"https://drive.google.com/drive/folders/{self.drive_folder}"
        if self.repository is not None:
            return f"https://huggingface.co/datasets/{self.repository}/blob/{self.revision}/{self.path}"
        return str(self.url)


class Sources(Settings):
    """files: the raw files, by their path in the data set's folder. mirror: a folder where they may lie already, under
    these paths or by name alone; they are read there. accept: the name by which a user accepts the terms before
    anything is fetched, for data whose terms ask that."""

    files: dict[str, RemoteFile] = Field(min_length=1)
    mirror: Path | None = None
    accept: str | None = None

    @field_validator("files")
    @classmethod
    def _within_the_folder(cls, files: dict[str, RemoteFile]) -> dict[str, RemoteFile]:
        for name in files:
            if Path(name).is_absolute() or ".." in Path(name).parts or not Path(name).name:
                raise ValueError(f"{name!r} is not a path within the data set's folder")
        return files


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
    interactions, items: the two files. sources: where they can be had.
    columns: the interactions' columns of other names, such as {user_id: userId}. header: the columns of a file of
    interactions that comes without a header. timestamp_unit: s or ms. item_key: the column or key of an item's id.
    records: of reader amazon, how metadata are written. clean_text: decode HTML entities and make control characters
    spaces, and count it. text_fields: the items' text, field -> column, in the order in which a text
    model reads them; without it, a csv data set has title and those of tag and description that its file has.
    missing_text: whether an item without text, or an interaction whose item has no record, is a bad row ("fail") or
    an item with empty text, as in the released code ("allow").
    event_times: whether the timestamps are times; False if they only order a user's events.
    tied_order: of a user's events with one timestamp: the "file" order, the file's "reversed", or "shuffled" by a fixed
    key. The last two are controls: they show what results owe to an order that the data do not tell.
    label: what makes an interaction positive; it changes nothing but the labels.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_-]*$")
    reader: Literal["movielens", "csv", "amazon"]
    package: str | None = None
    folder: Path
    interactions: str = "interactions.csv"
    items: str = "items.csv"
    sources: Sources | None = None
    columns: dict[Literal["user_id", "item_id", "timestamp"], str] = {}
    header: tuple[str, ...] | None = None
    timestamp_unit: Literal["s", "ms"] = "s"
    item_key: str = "item_id"
    records: Literal["python", "json"] = "python"
    clean_text: bool = False
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
        columns = [self.columns.get(name, name) for name in ("user_id", "item_id", "timestamp")]
        if self.header is not None and not set(columns) <= set(self.header):
            raise ValueError(f"header: it must name {', '.join(columns)}")
        return self

    def decisive(self) -> dict[str, Any]:
        """What decides the prepared sequences and texts: all but licence, terms, label and sources."""
        return self.model_dump(mode="json", exclude={"licence", "terms", "label", "sources"}, exclude_defaults=True)

    def files(self) -> tuple[Path, Path]:
        """The file of interactions and the file of items; both exist."""
        return self.file(self.interactions), self.file(self.items)

    def file(self, name: str) -> Path:
        """A raw file, in the data set's folder or in the mirror; it exists."""
        if (found := self.find(name)) is not None:
            return found
        if self.package is not None:
            path, mend = _package_folder(self.package, self.folder) / name, f"install {self.package} again"
        else:
            path, mend = self.folder.expanduser() / name, "mend `folder` or put the file there"
            if self.sources is not None and name in self.sources.files:
                place = self.sources.files[name].place
                mend = f"`python -m benchmark download {self.name}` gets it, or put {place} there yourself"
        raise UserError(f"data set {self.name}: there is no file {path}; {mend}")

    def find(self, name: str) -> Path | None:
        """A raw file where it is, None if it is nowhere."""
        if self.package is not None:
            places = [_package_folder(self.package, self.folder) / name]
        else:
            places = [self.folder.expanduser() / name]
        if self.sources is not None and self.sources.mirror is not None:
            mirror = self.sources.mirror.expanduser()
            places += [mirror / self.name / name, mirror / name, mirror / Path(name).name]
        return next((place for place in places if place.is_file()), None)

    def with_mirror(self, mirror: Path | None) -> DatasetDefinition:
        """The definition with files taken from another mirror, if one is given and the definition has sources."""
        if mirror is None or self.sources is None:
            return self
        return self.model_copy(update={"sources": self.sources.model_copy(update={"mirror": mirror})})


def _package_folder(package: str, folder: Path) -> Path:
    """A folder of an installed package, found without importing the package."""
    try:
        return Path(str(metadata.distribution(package).locate_file(folder)))
    except metadata.PackageNotFoundError as error:
        raise UserError(
            f"package {package}, which holds the raw data, is not installed; run `make .venv/.ready`"
        ) from error


def load_definitions(path: Path) -> dict[str, DatasetDefinition]:
    """The data sets of a file such as config/datasets.yaml, by name; a UserError names every wrong key.

    An entry whose name has {category} in it stands for one data set each of its `categories`, and {category} is that
    one wherever it stands in the entry.
    """
    return {name: _defined(name, entry) for name, entry in _entries(path).items()}


def find_definition(path: Path, name: str) -> DatasetDefinition:
    """One data set of a file such as config/datasets.yaml."""
    entries = _entries(path)
    if name not in entries:
        like = difflib.get_close_matches(name, entries, n=3, cutoff=0.6)
        told = f"did you mean {' or '.join(like)}?" if like else f"it has: {', '.join(sorted(read_yaml(path)))}"
        raise UserError(f"{path} has no data set {name!r}; {told}")
    return _defined(name, entries[name])


def _defined(name: str, entry: tuple[str, dict[str, Any]]) -> DatasetDefinition:
    where, content = entry
    return validated(DatasetDefinition, {"name": name, **content}, where)


def _entries(path: Path) -> dict[str, tuple[str, dict[str, Any]]]:
    """For every data set where it stands, for messages, and its settings."""
    entries: dict[str, tuple[str, dict[str, Any]]] = {}
    for key, entry in read_yaml(path).items():
        where = f"{path}, data set {key}"
        if not isinstance(key, str) or not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_-]*", key.replace("{category}", "x")):
            raise UserError(f"{path}: {key!r} cannot name a data set; use letters, digits, _ and, not first, -")
        if not isinstance(entry, dict):
            raise UserError(f"{where}: expected keys such as reader and folder, found {type(entry).__name__}")
        if "name" in entry:
            raise UserError(f"{where}: name: is not a known setting: the key of the entry is its name")
        if "{category}" not in key:
            entries[key] = (where, entry)
            continue
        content = dict(entry)
        categories = content.pop("categories", None)
        if not isinstance(categories, list) or not all(isinstance(name, str) for name in categories):
            raise UserError(f"{where}: categories: name them, such as [Books, Video_Games]")
        for category in categories:
            entries[_filled(key, category)] = (where, _filled(content, category))
    return entries


def _filled(value: Any, category: str) -> Any:
    """A value of an entry with {category} filled in."""
    if isinstance(value, str):
        return value.replace("{category}", category)
    if isinstance(value, dict):
        return {_filled(key, category): _filled(item, category) for key, item in value.items()}
    return [_filled(item, category) for item in value] if isinstance(value, list) else value
