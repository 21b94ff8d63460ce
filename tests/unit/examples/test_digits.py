"""The digits are learnt, and what is written answers in transformers as it does here."""

import numpy as np
import pytest
import torch
from transformers import AutoImageProcessor, AutoModelForImageClassification

from examples import digits
from pretrain.data.images import cut
from pretrain.hub.vit import load_vit


def test_what_is_written_answers_in_transformers_as_here(tmp_path, capsys):
    folder = tmp_path / "digits"
    digits.main([str(folder), "--epochs", "1"])
    assert "accuracy on 450 digits: " in capsys.readouterr().out
    _, unseen = digits.digits()
    theirs, again = AutoModelForImageClassification.from_pretrained(folder), load_vit(folder)
    processor = AutoImageProcessor.from_pretrained(folder)
    pixels = processor(list(unseen.images), input_data_format="channels_last", return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        expected, found = theirs(pixels).logits, again.module(cut(unseen.images, digits.CONFIG, again.scale))
    torch.testing.assert_close(found[:, 0], expected, atol=1e-5, rtol=1e-5)
    assert theirs.config.id2label == {number: str(number) for number in range(10)}


def test_what_is_measured_is_not_learnt_from():
    known, unseen = digits.digits()
    assert (len(known.images), len(unseen.images)) == (1347, 450)
    assert np.bincount(unseen.labels).min() >= 43


@pytest.mark.slow
def test_the_digits_are_read():
    known, unseen = digits.digits()
    assert digits.accuracy(digits.train(known, epochs=30, seed=1), unseen) > 0.97
