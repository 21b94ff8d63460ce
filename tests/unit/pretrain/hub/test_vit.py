"""ViT and DeiT equal those of transformers, image by image, in batches of images of different sizes; both ways."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import (
    AutoImageProcessor,
    AutoModelForImageClassification,
    DeiTConfig,
    DeiTForImageClassification,
    DeiTForImageClassificationWithTeacher,
    ViTConfig,
    ViTForImageClassification,
    ViTModel,
)

from pretrain.data.images import PixelScale, cut
from pretrain.errors import CheckpointError, ConfigError
from pretrain.hub.vit import Classifier, load_vit, save_vit
from pretrain.models.vision import ImageClassifier

KINDS = {
    "vit": (ViTConfig, ViTForImageClassification),
    "deit": (DeiTConfig, DeiTForImageClassification),
    "deit, two heads": (DeiTConfig, DeiTForImageClassificationWithTeacher),
}
NAMES = ["cat", "dog", "emu"]
SMALL = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 40}
SHAPES = st.tuples(st.integers(5, 29), st.integers(5, 29))


def theirs_of(kind, seed=0, **changes):
    config_type, model_type = KINDS[kind]
    torch.manual_seed(seed)
    said = SMALL | {"image_size": 15, "patch_size": 5, "id2label": dict(enumerate(NAMES))} | changes
    model = model_type(config_type(**said, label2id={name: number for number, name in enumerate(NAMES)})).eval()
    for parameter in model.parameters():  # nothing is a zero or a one that another could stand for
        torch.nn.init.normal_(parameter, std=0.2)
    return model


def pixels(shapes, channels=3, seed=0):
    draw = np.random.default_rng(seed)
    return [draw.integers(0, 256, (*shape, channels), dtype=np.uint8) for shape in shapes]


def scaled(image):
    """Return an image as transformers' models get it, (1, channels, height, width)."""
    return (torch.from_numpy(image).float() / 255 - 0.5).div(0.5).permute(2, 0, 1)[None]


def with_gradients(classifier):
    """Return a classifier whose weights are the gradients of another."""
    module = classifier.module
    twin = ImageClassifier(module.model.config, module.names, num_heads=len(module.heads))
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            twin.get_parameter(name).copy_(parameter.grad)
    return Classifier(twin, classifier.scale)


@given(
    kind=st.sampled_from(list(KINDS)),
    patch=st.integers(3, 5),
    side=st.integers(2, 4),
    layers=st.integers(1, 3),
    channels=st.sampled_from([1, 3]),
    bias=st.booleans(),
    activation=st.sampled_from(["gelu", "gelu_new", "relu"]),
    eps=st.sampled_from([1e-12, 1e-5]),
    shapes=st.lists(SHAPES, min_size=1, max_size=4),
    seed=st.integers(0, 99),
)
@settings(max_examples=25, deadline=None)
def test_logits_and_gradients_are_theirs(
    tmp_path_factory, kind, patch, side, layers, channels, bias, activation, eps, shapes, seed
):
    theirs = theirs_of(
        kind,
        seed,
        **{"patch_size": patch, "image_size": patch * side + seed % patch, "num_hidden_layers": layers},
        **{"num_channels": channels, "qkv_bias": bias, "hidden_act": activation, "layer_norm_eps": eps},
    )
    folder = tmp_path_factory.mktemp("theirs")
    theirs.save_pretrained(folder)
    ours = load_vit(folder)
    images = pixels(shapes, channels, seed)
    expected = torch.cat([theirs(scaled(image), interpolate_pos_encoding=True).logits for image in images])
    found = ours.module(cut(images, ours.module.model.config, ours.scale)).mean(1)
    assert ours.module.names == NAMES
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    labels = torch.arange(len(images)) % 3
    F.cross_entropy(expected, labels, reduction="sum").backward()
    F.cross_entropy(found, labels, reduction="sum").backward()
    written = save_vit(folder / "gradients", with_gradients(ours))  # under their names
    gradients = AutoModelForImageClassification.from_pretrained(written)
    assert type(gradients) is type(theirs)
    own = dict(theirs.named_parameters())
    for name, parameter in gradients.named_parameters():
        torch.testing.assert_close(parameter.detach(), own[name].grad, atol=1e-4, rtol=1e-4)


def loaded(folder, kind="vit", **changes):
    theirs_of(kind, **changes).save_pretrained(folder)
    return load_vit(folder)


def test_an_image_of_the_table_of_positions_is_not_interpolated(tmp_path):
    theirs = theirs_of("vit", image_size=[10, 25])
    theirs.save_pretrained(tmp_path)
    ours = load_vit(tmp_path)
    [image] = pixels([(10, 25)])
    found = ours.module(cut([image], ours.module.model.config, ours.scale))
    torch.testing.assert_close(found[:, 0], theirs(scaled(image)).logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_an_export_reads_back_bit_for_bit_with_its_pixels(tmp_path, kind):
    ours = loaded(tmp_path / "theirs", kind)
    mean, std = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
    folder = save_vit(tmp_path / "ours", Classifier(ours.module, PixelScale(mean=mean, std=std)))
    again = load_vit(folder)
    assert again.module.names == NAMES and again.module.model.config == ours.module.model.config
    for name, parameter in ours.module.named_parameters():
        assert torch.equal(again.module.get_parameter(name), parameter), name
    [image] = pixels([(15, 15)])
    theirs = AutoImageProcessor.from_pretrained(folder)(Image.fromarray(image), return_tensors="pt")["pixel_values"]
    patches = F.unfold(theirs, 5, stride=5)[0].T
    torch.testing.assert_close(cut([image], again.module.model.config, again.scale).values, patches)


def test_other_classes_keep_the_body_and_draw_heads_from_the_seed(tmp_path):
    first = loaded(tmp_path, "deit, two heads")
    [one, same, other] = [load_vit(tmp_path, names=["a", "b"], seed=seed).module for seed in (1, 1, 2)]
    assert one.names == ["a", "b"] and [len(head.weight) for head in one.heads] == [2, 2]
    assert torch.equal(one.model.patch_embedding.weight, first.module.model.patch_embedding.weight)
    assert torch.equal(one.heads[0].weight, same.heads[0].weight)
    assert not torch.equal(one.heads[0].weight, other.heads[0].weight)


def test_a_body_alone_gets_a_head(tmp_path):
    body = ViTModel(ViTConfig(**SMALL, image_size=15, patch_size=5))
    body.save_pretrained(tmp_path)
    module = load_vit(tmp_path, names=NAMES).module
    assert torch.equal(module.model.final_norm.weight, body.layernorm.weight)
    with pytest.raises(ConfigError, match="has no head; say the names of the classes"):
        load_vit(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "bert"}, "model_type=bert: must be vit or deit"),
        ({"hidden_act": "mish"}, r"hidden_act=mish is not supported \(gelu, gelu_new, relu are\)"),
        ({"patch_size": [4, 5]}, "patch_size=.4, 5.: must be a whole number"),
        ({"image_size": 3}, "model.image_height=3: must be at least model.patch_size=5"),
        ({"id2label": {"0": "cat", "2": "dog", "3": "emu"}}, "id2label=.*must name the classes from 0 on"),
        ({"swizzle": True}, "swizzle=True is not supported"),
    ],
)
def test_what_we_do_not_have_is_refused_by_its_key(tmp_path, change, message):
    loaded(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(ConfigError, match=message):
        load_vit(tmp_path)


def test_weights_of_another_shape_or_missing_are_refused_by_name(tmp_path):
    loaded(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["vit.layernorm.bias"]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"vit\.layernorm\.bias"):
        load_vit(tmp_path)


def test_a_directory_that_is_not_empty_is_not_written_over(tmp_path):
    ours = loaded(tmp_path)
    with pytest.raises(ConfigError, match="is there and not empty"):
        save_vit(tmp_path, ours)


@pytest.mark.parametrize(
    ("said", "scale"),
    [
        ({"do_normalize": False}, PixelScale(mean=(0.0,) * 3, std=(1.0,) * 3)),
        ({"image_mean": [0.1, 0.2, 0.3]}, PixelScale(mean=(0.1, 0.2, 0.3))),
    ],
)
def test_the_scale_of_pixels_is_what_the_directory_says(tmp_path, said, scale):
    loaded(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(said))
    assert load_vit(tmp_path).scale == scale


@pytest.mark.parametrize("said", [{"rescale_factor": 1 / 127.5}, {"image_mean": [0.5]}])
def test_pixels_that_we_would_scale_otherwise_are_refused(tmp_path, said):
    loaded(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(said))
    with pytest.raises(ConfigError, match=next(iter(said))):
        load_vit(tmp_path)


def test_a_resized_export_answers_without_interpolation_as_the_first_one_with_it(tmp_path):
    ours = loaded(tmp_path / "theirs", "deit")
    [image] = pixels([(20, 30)])
    config = ours.module.model.config
    expected = ours.module(cut([image], config, ours.scale))[:, 0]
    folder = save_vit(tmp_path / "resized", Classifier(ours.module.resized(20, 30), ours.scale))
    theirs = AutoModelForImageClassification.from_pretrained(folder)
    torch.testing.assert_close(theirs(scaled(image)).logits, expected, atol=1e-5, rtol=1e-5)
