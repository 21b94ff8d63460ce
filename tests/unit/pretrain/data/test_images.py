"""Images are read from folders and cut into patches as the strided convolution of ViT sees them."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from pretrain.data.images import PixelScale, cut, images_in, read_image
from pretrain.errors import ConfigError, DataError
from pretrain.models.vision import VisionConfig

CONFIG = VisionConfig(width=8, layers=1, heads=2, patch_size=4, image_height=8, image_width=8, max_seq_len=9)


def test_patches_lie_row_by_row_and_what_is_left_of_whole_ones_is_cut_off():
    images = [np.random.default_rng(n).integers(0, 256, shape, dtype=np.uint8) for n, shape in enumerate([(9, 7, 3)])]
    scale = PixelScale(mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    found = cut(images, CONFIG, scale)
    numbers = (torch.from_numpy(images[0]) / 255 - torch.tensor(scale.mean)) / torch.tensor(scale.std)
    assert found.grids == [(2, 1)]
    torch.testing.assert_close(found.values, F.unfold(numbers.permute(2, 0, 1)[None], 4, stride=4)[0].T)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((8, 8, 1), r"image 1: shape \(8, 8, 1\) must be \(height, width, 3\)"),
        ((3, 90, 3), "image 1: 3 x 90 pixels has no whole patch of model.patch_size=4"),
        ((12, 12, 3), "image 1: 10 tokens are more than model.max_seq_len=9"),
    ],
)
def test_an_image_that_the_model_cannot_see_is_refused_by_its_number(shape, message):
    with pytest.raises(DataError, match=message):
        cut([np.zeros((8, 8, 3), np.uint8), np.zeros(shape, np.uint8)], CONFIG, PixelScale())


def test_no_images_are_refused():
    with pytest.raises(DataError, match="no images"):
        cut([], CONFIG, PixelScale())


def test_folders_are_classes(tmp_path):
    pixels = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    for label, name in [("dog", "b.png"), ("cat", "a.PNG")]:
        (tmp_path / label).mkdir()
        Image.fromarray(pixels).save(tmp_path / label / name)
    (tmp_path / "cat" / "notes.txt").write_text("no image")
    found = images_in(tmp_path)
    assert [(image.path.name, image.label) for image in found] == [("a.PNG", "cat"), ("b.png", "dog")]
    assert np.array_equal(read_image(found[0].path), pixels)
    assert read_image(found[0].path, channels=1).shape == (2, 4, 1)


def test_files_that_are_no_images_are_refused_by_name(tmp_path):
    with pytest.raises(ConfigError, match="no such folder"):
        images_in(tmp_path / "absent")
    with pytest.raises(DataError, match="no images in FOLDER/CLASS/NAME"):
        images_in(tmp_path)
    (tmp_path / "torn.png").write_bytes(b"\x89PNG\r\n\x1a\n torn")
    with pytest.raises(DataError, match=r"torn\.png: no image that Pillow reads"):
        read_image(tmp_path / "torn.png")


def test_a_scale_needs_as_many_positive_deviations():
    with pytest.raises(ValueError, match="image_std"):
        PixelScale(mean=(0.5,), std=(0.5, 0.5))
    with pytest.raises(ValueError, match="must be positive"):
        PixelScale(mean=(0.5,), std=(0.0,))
