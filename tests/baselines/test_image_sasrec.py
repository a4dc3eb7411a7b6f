"""SASRec over pictures against loops over pictures and events, and its objectives of one negative a position."""

from pathlib import Path

import pytest
import torch
import yaml
from histories import LENGTHS, SEQUENCE_LENGTH, random_sequences
from torch.nn import functional as F

from baselines.image_sasrec import ImageSASRec, ImageSASRecSettings, VisionSettings
from baselines.sasrec import SASRec, SASRecSettings
from benchmark.data.batches import BatchTotals, TrainingBatch
from benchmark.recommender import Catalogue
from benchmark.training.engine import Engine
from benchmark.training.one_negative import OneNegative

ITEMS = 40
SHAPE = {"hidden_size": 12, "intermediate_size": 20, "num_hidden_layers": 3, "num_attention_heads": 2,
         "image_size": 8, "patch_size": 4}  # fmt: skip
VIT = {"model_type": "vit", **SHAPE, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
CLIP = {"model_type": "clip_vision_model", **SHAPE}
SASREC = SASRecSettings(layers=1, heads=2, width=8, feedforward_multiplier=2, dropout=0.0, attention_dropout=0.0)


def catalogue(size=8):
    generator = torch.Generator().manual_seed(0)
    return Catalogue(ITEMS, pixels=torch.randint(256, (ITEMS, size, size, 3), generator=generator, dtype=torch.uint8))


def build(config=VIT, trained=None):
    torch.manual_seed(1)
    model = ImageSASRec(
        catalogue(), SEQUENCE_LENGTH, ImageSASRecSettings(VisionSettings(config=config, trained_layers=trained), SASREC)
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def plain_item(model, item):
    """One picture, its patches by hand, its tokens through the same layers, the map, ReLU, and the mean over tokens."""
    picture = (model.pixels[item].double() / 255 - 0.5) / 0.5  # PixelRec's normalisation
    states = model.vision(pixel_values=picture.float().permute(2, 0, 1)[None]).last_hidden_state[0]
    mapped = [(model.projection.weight @ state + model.projection.bias).clamp(min=0) for state in states]
    return torch.stack(mapped).mean(0)


@pytest.mark.parametrize("config", [VIT, CLIP], ids=lambda c: c["model_type"])
def test_an_items_embedding_is_its_own_pictures(config):
    model = build(config).eval()
    items = torch.tensor([7, 3, 3, 39])
    expected = torch.stack([plain_item(model, int(item)) for item in items])
    torch.testing.assert_close(model.embed_items(items), expected, atol=1e-5, rtol=1e-5)
    tokens = model.vision(pixel_values=torch.zeros(1, 3, 8, 8)).last_hidden_state.shape[1]
    assert tokens == 5  # four patches and the class token


def test_histories_are_sasrecs():
    model, sequences = build().eval(), random_sequences(LENGTHS)
    plain = SASRec(Catalogue(ITEMS), SEQUENCE_LENGTH, SASREC).eval()
    above = {name: p for name, p in model.state_dict().items() if not name.startswith(("vision", "projection"))}
    missing = plain.load_state_dict(above, strict=False)
    assert missing.missing_keys == ["item_embedding.weight"]
    items = model.embed_items(sequences.items)
    assert torch.equal(model.embed_histories(sequences, items), plain.embed_histories(sequences, items))


@pytest.mark.parametrize("kind", ["bce", "bpr"])
@pytest.mark.parametrize("chunk", [None, 3])
def test_one_negative_a_position_equals_loops_with_gradients(kind, chunk):
    model, sequences = build(), random_sequences(LENGTHS)
    generator = torch.Generator().manual_seed(2)
    targets, negatives = torch.randint(ITEMS, (2, len(sequences.items)), generator=generator)
    batch = TrainingBatch(sequences, targets, negatives[:, None])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    engine = Engine(model, OneNegative(kind), optimizer, device=torch.device("cpu"), bf16=False, history_chunk=chunk)
    figures = engine.step(batch)
    got = {name: p.grad.clone() for name, p in model.named_parameters()}
    states = model.embed_histories(sequences, model.embed_items(sequences.items))
    total = 0.0
    for state, target, negative in zip(states, targets, negatives, strict=True):
        positive, other = (state @ plain_item(model, int(item)) for item in (target, negative))
        if kind == "bce":
            total = total - torch.sigmoid(positive).log() - (1 - torch.sigmoid(other)).log()
        else:
            total = total - torch.sigmoid(positive - other).log()
    expected = total / len(LENGTHS)
    torch.testing.assert_close(figures.loss, expected.detach(), atol=1e-5, rtol=1e-5)
    model.zero_grad()
    expected.backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(got[name], parameter.grad, atol=1e-5, rtol=1e-4, msg=name)
    assert got["vision.embeddings.patch_embeddings.projection.weight"].abs().max() > 0  # end to end


def test_parts_add_up_and_other_negatives_are_refused():
    model, sequences = build(), random_sequences([3, 5])
    whole = TrainingBatch(sequences, sequences.items, sequences.items[:, None])
    engine = Engine(
        model, OneNegative("bce"), torch.optim.SGD(model.parameters(), lr=0.0), device=torch.device("cpu"), bf16=False
    )
    totals = BatchTotals(2, 8)
    parts = [TrainingBatch(sequences.part(i, i + 1), x, x[:, None], totals)
             for i, x in enumerate(sequences.items.split([3, 5]))]  # fmt: skip
    losses = [engine.step(batch).loss for batch in (whole, *parts)]
    torch.testing.assert_close(losses[0], losses[1] + losses[2], atol=1e-6, rtol=1e-6)
    with pytest.raises(ValueError, match="takes one negative a position"):
        OneNegative("bce").items(TrainingBatch(sequences, sequences.items, sequences.items))


@pytest.mark.parametrize(("trained", "layers"), [(0, []), (1, [2]), (2, [1, 2])])
def test_only_the_last_layers_are_trained(trained, layers):
    model = build(CLIP, trained)
    learned = {name for name, p in model.vision.named_parameters() if p.requires_grad}
    assert {int(number) for name in learned for number in name.split(".") if number.isdigit()} == set(layers)
    F.softplus(model.embed_items(torch.arange(4))).sum().backward()
    assert model.projection.weight.grad.abs().max() > 0
    assert all((p.grad is not None) == p.requires_grad for p in model.vision.encoder.parameters())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"config": {"model_type": "vitt"}}, "is not one that transformers has"),
        ({"config": VIT | {"hidden_sise": 8}}, "hidden_sise, which vit does not know"),
        ({"config": VIT, "trained_layers": 4}, "trained_layers is 4, and the vision model has 3 layers"),
        ({"config": VIT | {"image_size": 16}}, "set images.size to 16"),
        ({"source": "hub", "path": "openai/clip-vit-base-patch32"}, "needs `revision`"),
        ({"source": "local", "path": "/nowhere"}, "is no folder with a config.json"),
    ],
)
def test_what_cannot_work_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        ImageSASRec(catalogue(), 9, ImageSASRecSettings(VisionSettings(**arguments), SASREC))


def test_pictures_are_asked_for():
    with pytest.raises(ValueError, match="give the run an `images` section"):
        ImageSASRec(Catalogue(ITEMS), 9, ImageSASRecSettings())


def test_a_saved_clip_is_read_from_a_folder(tmp_path):
    model = build(CLIP)
    model.vision.save_pretrained(tmp_path)
    again = ImageSASRec(catalogue(), 9, ImageSASRecSettings(VisionSettings("local", str(tmp_path)), SASREC))
    for name, parameter in model.vision.state_dict().items():
        assert torch.equal(parameter, again.vision.state_dict()[name]), name


def test_the_methods_file_names_settings_that_exist():
    file = yaml.safe_load((Path(__file__).parents[2] / "config" / "methods" / "sasrec-vit.yaml").read_text())
    from benchmark.training.registry import model_settings

    assert model_settings(file["class"], file["model"], "here").vision_model.trained_layers == 2
