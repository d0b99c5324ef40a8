"""Which images of its training data a network with several centres for each identity believes, as a list to train on.

    dino-ssl finetune arcface --data FACES --margin.centres 3 --output-dir RUN ...
    python -m eval.clean_identities --weights RUN --output clean.csv
    dino-ssl finetune arcface --data clean.csv ...                       (from scratch, with one centre)

Source: Deng et al., Sub-center ArcFace, ECCV 2020: on MS1MV0, IJB-C at 1e-4 rises from 90.27 to 95.92 % (75 degrees).
Measured here: no.
"""

import argparse
import csv
import sys
from collections.abc import Sequence
from pathlib import Path

from dino_ssl.cli import answer
from dino_ssl.errors import UsageError


def main(arguments: Sequence[str]) -> None:
    """Raises UsageError: the run has no centres, or its data is no longer what it was trained on."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, required=True, metavar="RUN", help="of dino-ssl finetune arcface")
    parser.add_argument("--degrees", type=float, default=75.0, help="largest angle to the dominant centre")
    parser.add_argument("--data-root", type=Path, default=Path("data"), help="folder of known data sets")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE.csv", help="columns path and label")
    words = parser.parse_args(arguments)
    import torch  # noqa: PLC0415

    from dino_ssl.data.sources import open_source  # noqa: PLC0415
    from dino_ssl.evaluation.features import Extractor  # noqa: PLC0415
    from dino_ssl.finetuning.subcenters import cleaned  # noqa: PLC0415
    from dino_ssl.models.weights import load  # noqa: PLC0415

    loaded = load(words.weights)
    encoder, content = loaded.encoder, loaded.file.content
    centres = content["model"].get("classes.centres") if "model" in content else None
    if centres is None:
        raise UsageError(f"weights={words.weights} has no centres; write a RUN of dino-ssl finetune arcface")
    source = open_source(content["config"]["data"], words.data_root)
    if source.fingerprint() != content["data"]["fingerprint"] or source.labels is None:
        raise UsageError(f"data={source.name} is not what {words.weights} was trained on; restore it")
    device = torch.device(words.device)
    network = encoder.backbone.to(device)  # type: ignore[attr-defined]
    extractor = Extractor(network, encoder.size, encoder.center_crop, encoder.mean, encoder.std, device)
    features = extractor.features(source)
    labels = torch.from_numpy(source.labels[features.indices]).long()
    found = cleaned(features.values, labels, centres, most_degrees=words.degrees)
    with words.output.open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(("path", "label"))
        for place in found.kept.tolist():
            index = int(features.indices[place])
            rows.writerow((source.describe(index), source.classes[source.labels[index]]))
    print(
        f"kept {len(found.kept):,} of {len(source):,} images, {len(found.classes):,} of {len(source.classes):,} people"
    )


if __name__ == "__main__":
    sys.exit(answer(lambda: main(sys.argv[1:]), "python -m eval.clean_identities"))
