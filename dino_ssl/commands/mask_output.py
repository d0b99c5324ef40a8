"""What `dino-ssl video` leaves on the disk: a palette PNG for each frame, and something to look at."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Literal

import numpy as np

from dino_ssl.data.footage import Footage
from dino_ssl.data.masks import Mask, write_mask
from dino_ssl.data.video import Frame, write_video
from dino_ssl.data.whole_image import as_rgb

Overlay = Literal["mp4", "gif", "sheet"]
Write = Callable[[str, np.ndarray, np.ndarray], None]
OVERLAYS = ("mp4", "gif", "sheet")
MOST_ON_SHEET = 9


@contextmanager
def written(folder: Path | None, footage: Footage, overlay: Overlay | None) -> Iterator[Write]:
    """A function that takes each frame's name, pixels and mask in turn.

    Masks become FOLDER/VIDEO/FRAME.png, as the evaluation of DAVIS reads them; the overlay lies beside that folder.
    Without a folder nothing is written.
    """
    if folder is None:
        yield lambda name, pixels, numbers: None
        return
    from dino_ssl.evaluation.mask_overlay import laid_over, shown_palette  # noqa: PLC0415

    masks, palette = folder / footage.name, footage.first.palette
    colours = shown_palette(palette)
    masks.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        show = stack.enter_context(_shown(folder, footage, overlay)) if overlay else None

        def write(name: str, pixels: np.ndarray, numbers: np.ndarray) -> None:
            write_mask(masks / f"{name}.png", Mask(numbers, palette))
            if show is not None:
                show(laid_over(as_rgb(pixels), numbers, colours))

        yield write


@contextmanager
def _shown(folder: Path, footage: Footage, overlay: Overlay) -> Iterator[Callable[[Frame], None]]:
    if overlay != "sheet":
        with write_video(folder / f"{footage.name}.{overlay}", footage.rate) as write:
            yield write
        return
    from dino_ssl.evaluation.mask_overlay import sheet  # noqa: PLC0415

    spread = _Spread()
    yield spread.take
    if spread.frames:
        sheet(spread.chosen()).save(folder / f"{footage.name}.sheet.png")


class _Spread:
    """Frames evenly spread over a video of whatever length: each time there are too many, every second one goes."""

    def __init__(self) -> None:
        self.frames: list[Frame] = []
        self._seen, self._step = 0, 1

    def take(self, frame: Frame) -> None:
        if self._seen % self._step == 0:
            self.frames.append(frame)
        self._seen += 1
        if len(self.frames) > 2 * MOST_ON_SHEET:
            self.frames, self._step = self.frames[::2], 2 * self._step

    def chosen(self) -> list[Frame]:
        places = np.linspace(0, len(self.frames) - 1, min(MOST_ON_SHEET, len(self.frames)))
        return [self.frames[place] for place in places.round().astype(int).tolist()]
