"""Photographs and drawn views for the tests of the renderers."""

import numpy as np
from sklearn.datasets import load_sample_image

from dino_ssl.data.crops import VIEW

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)


def half_photo(name):
    return np.ascontiguousarray(load_sample_image(name)[::2, ::2])


PHOTOS = np.stack([half_photo("china.jpg"), half_photo("flower.jpg")])
HEIGHT, WIDTH = PHOTOS.shape[1:3]


def drawn(num_views, num_images, **fields):
    """Random boxes and factors, and of the operations those of `fields`."""
    rng = np.random.default_rng(0)
    views = np.zeros((num_views, num_images), VIEW)
    extent = np.array([WIDTH, HEIGHT])
    lengths = np.rint(rng.uniform(0.2, 0.9, (*views.shape, 2)) * extent)
    starts = np.rint(rng.uniform(0, 1, lengths.shape) * (extent - lengths))
    views["box"] = np.concatenate([starts, lengths], axis=-1)
    views["factors"] = rng.uniform((0.6, 0.6, 0.8, -0.1), (1.4, 1.4, 1.2, 0.1), (*views.shape, 4))
    views["order"] = -1
    for name, value in fields.items():
        views[name] = value
    return views


def full_recipe(num_views, num_images):
    """Every operation at random, as often as half of the time."""
    rng = np.random.default_rng(1)
    shape = num_views, num_images
    order = rng.permuted(np.broadcast_to(np.arange(4), (*shape, 4)), axis=-1)
    order[rng.random(shape) < 0.2] = -1
    radius = np.where(rng.random(shape) < 0.5, rng.uniform(0.1, 2.0, shape), 0)
    flip, grayscale, solarize = (rng.random(shape) < share for share in (0.5, 0.2, 0.2))
    views = drawn(*shape, order=order, blur_radius=radius, flip=flip, grayscale=grayscale, solarize=solarize)
    views["box"] += rng.uniform(0, 0.5, views["box"].shape) * (1, 1, -1, -1)
    return views


def jittered(operation):
    return {"order": [operation, -1, -1, -1]}
