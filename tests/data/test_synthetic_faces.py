"""Drawn faces: the same everywhere, other people in the test split, and people who can be told apart."""

import pickle

import numpy as np
import pytest
from opening import ROOT, labels_of

from dino_ssl.data.face_pairs import drawn_pairs
from dino_ssl.data.sources import open_source
from dino_ssl.data.sources import test_source_of as held_out_part
from dino_ssl.evaluation.verification import Pairs, insightface


def test_faces_are_the_same_in_every_process_and_at_every_call() -> None:
    source = open_source("synthetic_faces", ROOT)
    again = pickle.loads(pickle.dumps(source))
    for index in (0, 19, 20, 1279):
        np.testing.assert_array_equal(source.raw(index), again.raw(index))
    assert source.raw(0).shape == (112, 112, 3) and (source.raw(0) != source.raw(1)).any()
    assert source.fingerprint() == again.fingerprint() != open_source("synthetic_faces:test", ROOT).fingerprint()
    with pytest.raises(IndexError):
        source.raw(1280)


def test_the_test_split_has_other_people_and_is_nobodys_held_out_part() -> None:
    train, test = open_source("synthetic_faces", ROOT), open_source("synthetic_faces:test", ROOT)
    assert (len(train), len(train.classes), len(test), len(test.classes)) == (1280, 64, 384, 32)
    assert not set(train.classes) & set(test.classes)
    assert np.bincount(labels_of(test)).tolist() == [12] * 32
    assert held_out_part("synthetic_faces") is None


def test_people_differ_more_than_their_images_but_pixels_alone_do_not_tell_all_of_them() -> None:
    source = open_source("synthetic_faces:test", ROOT)
    pixels = np.stack([source.raw(index) for index in range(len(source))]).astype(np.float64)
    small = pixels.reshape(-1, 14, 8, 14, 8, 3).mean((2, 4)) / 255
    features = np.stack([small - 0.5, small[:, :, ::-1] - 0.5], 1).reshape(len(source), 2, -1)
    pairs = drawn_pairs(source, 600)
    accuracy = insightface(features, Pairs(pairs.left, pairs.right, pairs.is_same)).mean
    assert 0.6 < accuracy < 0.9
