"""ViT and DeiT classifiers as Hugging Face directories: read from what is released, written for what loads them.

Holds names and configuration, both ways; the network is in `pretrain.models.vision`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save as serialized
from torch import Tensor

from pretrain.checkpoint.fragments import OpenFiles
from pretrain.checkpoint.load import check_architecture
from pretrain.data.images import PixelScale
from pretrain.errors import ConfigError, check
from pretrain.files import write_hashed
from pretrain.hub.config_json import SIZES, Settings, check_value, shown
from pretrain.hub.weight_files import WHOLE, locate, read_json
from pretrain.models.layers import Activation
from pretrain.models.vision import ImageClassifier, VisionConfig

PROCESSOR = "preprocessor_config.json"
_SAME = {key: own for key, own in SIZES.items() if own != "max_seq_len"}
_SAME |= {"layer_norm_eps": "norm_eps", "num_channels": "channels", "patch_size": "patch_size", "qkv_bias": "qkv_bias"}
SETTINGS = Settings(
    same=_SAME,
    defaults={
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "intermediate_size": 3072,
        "layer_norm_eps": 1e-12,
        "num_channels": 3,
        "patch_size": 16,
        "qkv_bias": True,
        "image_size": 224,
        "hidden_act": "gelu",
    },
    training={"hidden_dropout_prob": "dropout", "attention_probs_dropout_prob": "attention_dropout"},
    activation_key="hidden_act",
    activations={Activation.gelu: "gelu", Activation.gelu_tanh: "gelu_new", Activation.relu: "relu"},
    computes={},
    read={"image_size": int},
    silent=("encoder_stride", "pooler_"),  # of masked image modelling and of a head that classifiers lack
)
TYPES = {"layer_norm_eps": float, "qkv_bias": bool}  # of keys; the others are whole numbers


@dataclass(frozen=True)
class Classifier:
    """A classifier with what its images must become before it sees them."""

    module: ImageClassifier
    scale: PixelScale


class _Part(NamedTuple):
    """Rows of one of our tensors, as theirs is called and shaped."""

    theirs: str
    shape: tuple[int, ...]


def load_vit(directory: Path, *, names: Sequence[str] | None = None, seed: int = 0) -> Classifier:
    """Return the classifier of a directory of ViT or DeiT, as `transformers` writes it.

    With other class `names` than its own the body is kept and the heads are drawn anew from `seed`; so they are if the
    directory has none. Raises `ConfigError` for an architecture or setting that we do not have, `CheckpointError` for
    weights that are missing, damaged or of another shape.
    """
    theirs = read_json(directory / "config.json")
    kind, config = _kind(theirs, directory), _config(theirs, directory)
    known = _names_in(theirs, directory)
    files = OpenFiles(directory)
    file_of = locate(directory, files)
    body_alone = not any(name.startswith(f"{kind}.") for name in file_of)
    stored = {f"{kind}.{name}" if body_alone else name: name for name in file_of}
    num_heads = 2 if "distillation_classifier.weight" in stored else 1
    headless = (names is not None and list(names) != known) or not any("classifier" in name for name in stored)
    if headless and names is None:
        raise ConfigError(f"{directory}: has no head; say the names of the classes")
    module = ImageClassifier.drawn(config, known if names is None else names, num_heads=num_heads, seed=seed)
    parts = {ours: own for ours, own in _parts(module, kind).items() if not (headless and ours.startswith("heads."))}
    wanted = {stored.get(part.theirs, part.theirs): torch.Size(part.shape) for own in parts.values() for part in own}
    slices = {name: files[file_of[name]].get_slice(name) for name in file_of}
    left = ("classifier.", "cls_classifier.", "distillation_classifier.") if headless else ()
    unused = (*left, f"{kind}.pooler.", f"{kind}.embeddings.mask_token", "decoder.")
    found = {
        name: torch.Size(slices[name].get_shape()) for current, name in stored.items() if not current.startswith(unused)
    }
    check_architecture(directory, wanted, found, "its weights are not those that its config.json describes")
    with torch.no_grad():
        for ours, own in parts.items():
            parameter = module.get_parameter(ours)
            flat = torch.cat([slices[stored[part.theirs]][:].float().flatten() for part in own])
            parameter.copy_(flat.view_as(parameter))
    return Classifier(module, _scale(directory, config.channels))


def save_vit(directory: Path, classifier: Classifier) -> Path:
    """Write a classifier as a new directory that `transformers` loads without code of ours, and return it.

    Raises `ConfigError` for a directory that is there and is not empty.
    """
    rule = "is there and not empty; name a new one"
    check(not directory.exists() or not any(directory.iterdir()), "the directory", str(directory), rule)
    directory.mkdir(parents=True, exist_ok=True)
    module, scale = classifier.module, classifier.scale
    config = module.model.config
    kind = "deit" if config.distilled else "vit"
    tensors = {name: value.clone(memory_format=torch.contiguous_format) for name, value in _their_tensors(module, kind)}
    write_hashed(directory / WHOLE, serialized(tensors, metadata={"format": "pt"}))
    _write(directory / "config.json", _config_json(module, kind))
    processor = {
        "image_processor_type": f"{'DeiT' if config.distilled else 'ViT'}ImageProcessor",
        **{"do_resize": True, "size": {"height": config.image_height, "width": config.image_width}},
        **{"do_center_crop": False, "do_rescale": True, "rescale_factor": 1 / 255},
        **{"do_normalize": True, "image_mean": scale.mean, "image_std": scale.std},
    }
    _write(directory / PROCESSOR, processor)
    return directory


def _kind(theirs: Mapping[str, Any], directory: Path) -> str:
    found = theirs.get("model_type")
    if found not in ("vit", "deit"):
        raise ConfigError(f"{directory / 'config.json'}: model_type={shown(found)}: must be vit or deit")
    return found


def _config(theirs: dict[str, Any], directory: Path) -> VisionConfig:
    file, full = directory / "config.json", SETTINGS.complete(theirs)
    try:
        for key in SETTINGS.same:
            check_value(key, full[key], TYPES.get(key, int), least=1)
        if refused := SETTINGS.refused(full):
            key, rule = refused
            raise ConfigError(f"{key}={shown(full[key])} is not supported ({rule})")
        check_value("hidden_act", full["hidden_act"], str)
        activation = SETTINGS.activation(full["hidden_act"])
        if activation is None:
            known = ", ".join(SETTINGS.activations.values())
            raise ConfigError(f"hidden_act={shown(full['hidden_act'])} is not supported ({known} are)")
        size = full["image_size"]
        height, width = size if isinstance(size, list) and len(size) == 2 else (size, size)
        for side in (height, width):
            check_value("image_size", side, int, least=1)
        return VisionConfig(
            **{own: full[key] for key, own in SETTINGS.same.items()},
            **{"image_height": height, "image_width": width, "activation": activation},
            distilled=theirs["model_type"] == "deit",
        )
    except ConfigError as error:
        raise ConfigError(f"{file}: {error}") from None


def _names_in(theirs: Mapping[str, Any], directory: Path) -> list[str]:
    labels = theirs.get("id2label") or {"0": "LABEL_0", "1": "LABEL_1"}
    check_value("id2label", labels, dict)
    wanted = [str(number) for number in range(len(labels))]
    check(labels.keys() == set(wanted), "id2label", shown(labels), f"{directory}: must name the classes from 0 on")
    return [str(labels[key]) for key in wanted]


def _config_json(module: ImageClassifier, kind: str) -> dict[str, Any]:
    config = module.model.config
    height, width = config.image_height, config.image_width
    numbered = dict(enumerate(module.names))
    values = vars(config) | {"mlp_width": config.hidden_width}
    prefix = "DeiT" if config.distilled else "ViT"
    return {
        "architectures": [f"{prefix}ForImageClassification{'WithTeacher' if len(module.heads) == 2 else ''}"],
        "model_type": kind,
        **{their: values[own] for their, own in (SETTINGS.same | SETTINGS.training).items()},
        "image_size": height if height == width else [height, width],
        "hidden_act": SETTINGS.activations[config.activation],
        "initializer_range": config.init_std,
        "id2label": numbered,
        "label2id": {name: number for number, name in numbered.items()},
    }


def _parts(module: ImageClassifier, kind: str) -> dict[str, list[_Part]]:
    """Return which of their tensors, rows after rows, each of ours is."""
    config = module.model.config
    width, embeddings = config.width, f"{kind}.embeddings"
    special = ["cls_token", "distillation_token"][: config.num_special]
    positions = len(module.model.position_embedding)
    patch = (width, config.channels, config.patch_size, config.patch_size)
    found = {
        "model.special_embedding": [_Part(f"{embeddings}.{name}", (1, 1, width)) for name in special],
        "model.position_embedding": [_Part(f"{embeddings}.position_embeddings", (1, positions, width))],
        "model.patch_embedding.weight": [_Part(f"{embeddings}.patch_embeddings.projection.weight", patch)],
        "model.patch_embedding.bias": [_Part(f"{embeddings}.patch_embeddings.projection.bias", (width,))],
    }
    tables = {"model.final_norm": f"{kind}.layernorm", **_heads(module)}
    for layer in range(config.layers):
        ours, theirs = f"model.blocks.{layer}", f"{kind}.encoder.layer.{layer}"
        tables |= {f"{ours}.{own}": f"{theirs}.{their}" for own, their in _BLOCK.items()}
    for name, parameter in module.named_parameters():
        place, _, leaf = name.rpartition(".")
        if name in found:
            continue
        if place.endswith(".qkv"):
            stem = f"{kind}.encoder.layer.{place.split('.')[2]}.attention.attention"
            shape = (width, *parameter.shape[1:])
            found[name] = [_Part(f"{stem}.{one}.{leaf}", shape) for one in ("query", "key", "value")]
        else:
            found[name] = [_Part(f"{tables[place]}.{leaf}", tuple(parameter.shape))]
    return found


_BLOCK = {
    "attention.out": "attention.output.dense",
    "attention_norm": "layernorm_before",
    "mlp_norm": "layernorm_after",
    "mlp.up": "intermediate.dense",
    "mlp.down": "output.dense",
}


def _heads(module: ImageClassifier) -> dict[str, str]:
    theirs = ["classifier"] if len(module.heads) == 1 else ["cls_classifier", "distillation_classifier"]
    return {f"heads.{number}": name for number, name in enumerate(theirs)}


def _their_tensors(module: ImageClassifier, kind: str) -> Iterator[tuple[str, Tensor]]:
    for ours, own in _parts(module, kind).items():
        pieces = module.get_parameter(ours).detach().float().chunk(len(own))
        for part, piece in zip(own, pieces, strict=True):
            yield part.theirs, piece.reshape(part.shape)


def _scale(directory: Path, channels: int) -> PixelScale:
    """Return what the directory says of pixels, else ViT's scale."""
    half = (0.5,) * channels
    if not (directory / PROCESSOR).exists():
        return PixelScale(mean=half, std=half)
    said = read_json(directory / PROCESSOR)
    if not said.get("do_normalize", True):
        return PixelScale(mean=(0.0,) * channels, std=(1.0,) * channels)
    factor = said.get("rescale_factor", 1 / 255)
    rule = f"{directory / PROCESSOR}: bytes are divided by 255 before they are normalised; set 1/255"
    check(abs(factor - 1 / 255) < 1e-9, "rescale_factor", factor, rule)
    mean, std = (tuple(said.get(key, half)) for key in ("image_mean", "image_std"))
    rule = f"{directory / PROCESSOR}: needs a value for each of {channels} channels"
    check(len(mean) == channels, "image_mean", mean, rule)
    return PixelScale(mean=mean, std=std)


def _write(path: Path, content: Mapping[str, Any]) -> None:
    write_hashed(path, json.dumps(content, indent=2).encode() + b"\n")
