"""1:1 verification of templates on IJB-B and IJB-C, as InsightFace measures it."""

import time

import numpy as np

from dino_ssl.data.ijb import Ijb
from dino_ssl.errors import UsageError
from dino_ssl.evaluation.face_protocols import Read, Views
from dino_ssl.evaluation.face_templates import rates_on_curve, template_cosines, templates
from dino_ssl.evaluation.protocols import IJB
from dino_ssl.evaluation.results import Evaluation, Measurement, Plain, about, about_data
from dino_ssl.models.encoder import Encoder

FARS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)


def evaluate(read: Read, encoder: Encoder, data: Ijb) -> Evaluation:
    """True accepts at the published false accept rates, as far as there are pairs for them.

    Images that cannot be read are left out of their templates.

    Raises:
        UsageError: none of a template's images can be read.
    """
    begin = time.perf_counter()
    features = read(data.images, Views().readout(1, encoder.size))
    kept = features.indices
    summed = features.values.double().sum(1).numpy()
    numbers, vectors = templates(summed, data.templates[kept], data.media[kept], data.scores[kept])
    try:
        cosines = template_cosines(numbers, vectors, data.first, data.second)
    except ValueError as error:
        raise UsageError(f"{error}: none of its images can be read") from None
    finest = 1 / np.count_nonzero(~data.is_same)
    fars = [far for far in FARS if far >= finest]
    found = rates_on_curve(cosines, data.is_same, fars).tolist()
    note: Plain = f"false accept rates are resolved to {finest:.2g}; {features.num_broken:,} images cannot be read"
    return Evaluation(
        IJB,
        about(encoder),
        {"images": about_data(data.images, len(kept))},
        [Measurement("ijb/tar", tar, None, {"far": f"{far:g}"}) for far, tar in zip(fars, found, strict=True)],
        time.perf_counter() - begin,
        {"templates": len(numbers), "pairs": len(data.is_same)},
        {"note": note},
    )
