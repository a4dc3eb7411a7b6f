"""The image store: what is decoded, what is refused, and how it is told."""

import numpy as np
import pytest
import torch
from PIL import Image

from benchmark.data.dataset import load_dataset
from benchmark.data.images import ImageSettings, images_folder, load_images, make_images
from benchmark.errors import UserError
from tests.training.interactions import prepared

ITEMS = 6


@pytest.fixture
def dataset_folder(tmp_path):
    return prepared(tmp_path / "data", users=12, items=ITEMS)


def pictures(folder, ids, size=(5, 9)):
    """One of random colours an item, in turn as PNG, JPEG and WebP, one of them with transparency."""
    folder.mkdir()
    random = np.random.default_rng(0)
    for number, item in enumerate(ids):
        pixels = random.integers(0, 256, (*size, 4 if number == 3 else 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{item}{('.png', '.jpg', '.webp')[number % 3]}")
    return folder


def settings(folder, **options):
    return ImageSettings.from_mapping({"folder": str(folder), "size": 4, **options})


def test_pictures_are_decoded_in_the_items_order_and_resized(dataset_folder, tmp_path):
    ids = load_dataset(dataset_folder).item_ids()
    source = pictures(tmp_path / "covers", ids)
    store = make_images(dataset_folder, settings(source))
    found = load_images(store, ITEMS)
    assert found.dtype == torch.uint8
    assert found.shape == (ITEMS, 4, 4, 3)
    for number, item in enumerate(ids):
        with Image.open(next(source.glob(f"{item}.*"))) as image:
            expected = np.asarray(image.convert("RGB").resize((4, 4), Image.Resampling.BILINEAR))
        assert np.array_equal(found[number].numpy(), expected), item
    assert make_images(dataset_folder, settings(source)) == store
    assert images_folder(dataset_folder, settings(source, size=8)) != store


def damage(name):
    def cut(path):
        path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])

    def text(path):
        path.write_text("<html>not found</html>")

    def absent(path):
        path.unlink()

    return {"cut": cut, "text": text, "absent": absent}[name]


@pytest.mark.parametrize(
    ("name", "message"), [("cut", "is damaged: "), ("text", "is no JPEG, PNG or WebP file"), ("absent", "no file")]
)
def test_a_missing_or_broken_picture_is_named(dataset_folder, tmp_path, name, message):
    ids = load_dataset(dataset_folder).item_ids()
    source = pictures(tmp_path / "covers", ids, size=(60, 60))
    damage(name)(source / f"{ids[1]}.jpg")
    with pytest.raises(UserError, match=rf"1 of {ITEMS} items have no usable picture in .*: {ids[1]} \(.*{message}"):
        make_images(dataset_folder, settings(source))
    assert not (images_folder(dataset_folder, settings(source)) / "images.json").exists()
    blank = make_images(dataset_folder, settings(source, missing="blank"))
    assert (load_images(blank, ITEMS)[1] == 128).all()


def test_a_huge_picture_is_refused_before_it_fills_the_memory(dataset_folder, tmp_path, monkeypatch):
    ids = load_dataset(dataset_folder).item_ids()
    source = pictures(tmp_path / "covers", ids)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40)
    with pytest.raises(UserError, match="has too many pixels"):
        make_images(dataset_folder, settings(source))


def test_ids_lead_to_no_other_folder(tmp_path):
    from benchmark.data.images import _pixels

    (tmp_path / "covers").mkdir()
    Image.new("RGB", (3, 3)).save(tmp_path / "secret.png")
    assert _pixels(tmp_path / "covers", "../secret", 4) == "its id is no file name"


def test_an_unusable_store_is_one_sentence(dataset_folder, tmp_path):
    ids = load_dataset(dataset_folder).item_ids()
    store = make_images(dataset_folder, settings(pictures(tmp_path / "covers", ids)))
    with pytest.raises(UserError, match="the data set has 7 items"):
        load_images(store, 7)
    (store / "pixels.npy").write_bytes(b"\x93NUMPY")
    with pytest.raises(UserError, match=r"cannot be used .*make it again with `python -m benchmark images`"):
        load_images(store, ITEMS)
    (store / "images.json").unlink()
    with pytest.raises(UserError, match="there is no image store"):
        load_images(store, ITEMS)
    with pytest.raises(UserError, match="is no folder"):
        make_images(dataset_folder, settings(tmp_path / "absent"))
    with pytest.raises(UserError, match="images: folder is missing"):
        ImageSettings.from_mapping({"size": 4})
