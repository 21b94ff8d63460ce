"""An image is computed alone whatever lies beside it, by every backend; a second head needs a second token."""

import pytest
import torch

from pretrain.errors import ConfigError
from pretrain.models.attention.eager import eager
from pretrain.models.attention.sdpa import sdpa
from pretrain.models.vision import ImageClassifier, Patches, VisionConfig

SMALL = {"width": 16, "layers": 2, "heads": 2, "patch_size": 2, "image_height": 6, "image_width": 4, "init_std": 0.3}
CONFIG = VisionConfig(**SMALL, distilled=True)
GRIDS = [(3, 2), (1, 1), (2, 5)]


def patches(grids=GRIDS):
    torch.manual_seed(0)
    return Patches(torch.randn(sum(rows * columns for rows, columns in grids), CONFIG.patch_values), grids)


def of_one(batch, number):
    sizes = [rows * columns for rows, columns in batch.grids]
    return Patches(batch.values.split(sizes)[number], [batch.grids[number]])


@pytest.mark.parametrize("attend", [eager, sdpa], ids=["eager", "sdpa"])
def test_logits_of_an_image_are_those_of_it_alone(attend):
    module = ImageClassifier(CONFIG, ["a", "b", "c"], num_heads=2, attend=attend)
    module.load_state_dict(ImageClassifier.drawn(CONFIG, ["a", "b", "c"], num_heads=2).state_dict())
    batch = patches()
    together = module(batch)
    assert together.shape == (3, 2, 3)
    for number in range(3):
        torch.testing.assert_close(together[number], module(of_one(batch, number))[0], atol=1e-5, rtol=1e-5)


def test_no_gradient_leaves_an_image():
    batch = patches()
    batch.values.requires_grad_()
    ImageClassifier.drawn(CONFIG, ["a", "b"])(batch)[2].sum().backward()
    assert batch.values.grad is not None
    assert not batch.values.grad[:7].any() and batch.values.grad[7:].all(1).all()


def test_a_drawn_classifier_depends_on_its_seed_alone():
    one, same, other = (ImageClassifier.drawn(CONFIG, ["a"], seed=seed).state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["model.special_embedding"], other["model.special_embedding"])
    assert one["model.final_norm.weight"].eq(1).all() and not one["heads.0.bias"].any()


def test_a_resized_classifier_answers_images_of_its_size_as_before():
    first = ImageClassifier.drawn(CONFIG, ["a", "b"], num_heads=2)
    second = first.resized(4, 10)
    assert second.model.config.grid == (2, 5) and second.model.position_embedding.shape == (12, 16)
    one = of_one(patches(), 2)
    torch.testing.assert_close(second(one), first(one))
    second.heads[0].weight.data.zero_()
    assert first.heads[0].weight.any(), "they share nothing"


def test_a_second_head_needs_the_distillation_token():
    with pytest.raises(ValueError, match=r"model\.distilled"):
        ImageClassifier(VisionConfig(**SMALL), ["a"], num_heads=2)


@pytest.mark.parametrize(("key", "value"), [("patch_size", 0), ("channels", 0), ("image_height", 1)])
def test_sizes_are_checked(key, value):
    with pytest.raises((ConfigError, ValueError), match=f"model.{key}={value}"):
        VisionConfig(**SMALL | {key: value})
