"""TinyFace (Cheng et al. 2018) in the layout in which it was published, and aligned as AdaFace offers it."""

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from dino_ssl.data.compact_names import CompactNames
from dino_ssl.data.folders import Files, read_folder
from dino_ssl.data.published_layout import not_laid_out
from dino_ssl.errors import UsageError

DISTRACTOR = -100
"""Label of images of people that nobody looks for."""
TREE = """\
  DIR/Probe/LABEL_NUMBER.jpg                images to name; also below DIR/Testing_Set
  DIR/Gallery_Match/LABEL_NUMBER.jpg        images of the same people
  DIR/Gallery_Distractor/NAME.jpg           images of others
"""


@dataclass(frozen=True)
class TinyFace:
    """Probes and gallery, with the people on them; `DISTRACTOR` in the gallery only."""

    probes: Files
    probe_labels: Int64[np.ndarray, " q"]
    gallery: Files
    gallery_labels: Int64[np.ndarray, " g"]


def open_tinyface(root: Path) -> TinyFace:
    """Find the three folders.

    Raises:
        UsageError: the folder is laid out otherwise, or a name does not begin with a label.
    """
    root = next((place for place in (root, root / "Testing_Set") if (place / "Probe").is_dir()), root)
    for name in ("Probe", "Gallery_Match", "Gallery_Distractor"):
        if not (root / name).is_dir():
            raise not_laid_out(root, "TinyFace", f"there is no {root / name}", TREE)
    probes, match, others = (read_folder(root / name) for name in ("Probe", "Gallery_Match", "Gallery_Distractor"))
    names = [*(f"Gallery_Match/{name}" for name in match.names), *(f"Gallery_Distractor/{n}" for n in others.names)]
    gallery = Files(root, CompactNames.of(names), None, (), f"{root}:gallery")
    labels = np.concatenate([_labels(match), np.full(len(others), DISTRACTOR)])
    return TinyFace(probes, _labels(probes), gallery, labels)


def _labels(files: Files) -> Int64[np.ndarray, " n"]:
    """The number before the first underscore of each name."""
    found = [re.match(r"(\d{1,9})_", Path(name).name, re.ASCII) for name in files.names]
    if None in found:
        raise UsageError(f"{files.describe(found.index(None))}: the name must begin with a label and an underscore")
    return np.array([int(match[1]) for match in found if match], np.int64)
