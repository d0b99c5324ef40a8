"""A small data set in the layout of DAVIS 2017."""

import numpy as np
from PIL import Image

from dino_ssl.data.masks import Mask, default_palette, write_mask


def write_davis(root, clips, *, only_first=()):
    """Clips by name, each frames [t, h, w, 3] and masks [t, h, w]."""
    (root / "ImageSets" / "2017").mkdir(parents=True)
    (root / "ImageSets" / "2017" / "val.txt").write_text("".join(f"{name}\n" for name in clips))
    for name, (frames, masks) in clips.items():
        images, annotations = root / "JPEGImages" / "480p" / name, root / "Annotations" / "480p" / name
        images.mkdir(parents=True)
        annotations.mkdir(parents=True)
        for number, (frame, mask) in enumerate(zip(frames, masks, strict=True)):
            Image.fromarray(frame).save(images / f"{number:05d}.jpg", quality=95)
            if number == 0 or name not in only_first:
                write_mask(annotations / f"{number:05d}.png", Mask(mask, default_palette()))
    return root


def moving_boxes(num_frames=4, num_objects=2, size=(64, 96)):
    """Boxes with textures that move to the right, over a texture that stays."""
    rng = np.random.default_rng(0)
    ground = rng.integers(0, 256, (*size, 3), np.uint8)
    frames, masks = [], []
    for now in range(num_frames):
        frame, mask = ground.copy(), np.zeros(size, np.uint8)
        for number in range(1, num_objects + 1):
            place = np.s_[24 * number - 16 : 24 * number, 8 + 8 * now : 32 + 8 * now]
            frame[place] = np.random.default_rng(number).integers(0, 256, (16, 24, 3), np.uint8)
            mask[place] = number
        frames.append(frame)
        masks.append(mask)
    return np.stack(frames), np.stack(masks)
