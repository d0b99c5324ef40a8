"""Render the drawn views of a micro-batch with batched tensor operations: on a GPU, and on the CPU for tests.

Nothing here waits for the device: shapes follow from the arguments' shapes alone. On CUDA the elementwise parts
are compiled at their first call; elsewhere, and with TORCH_COMPILE_DISABLE=1, they run as written. As in PIL, a
pixel is a byte after every operation; bytes are also all that goes through memory between two operations.

Sizes: v views, b images of h x w pixels and c channels, n = b * v rendered views of s x s pixels.
"""

import functools
import math
from collections.abc import Callable
from typing import Concatenate, ParamSpec, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Float64, Int8, Shaped, UInt8
from torch import Tensor

from dino_ssl.data.crops import OPERATIONS, SOLARIZE_THRESHOLD, VIEW

WORKSPACE = 512 * 2**20
"""Bytes of temporaries that the images rendered at once may take; a single image may take more."""
MIDDLE = 128  # pixels are resampled around it: they and their sums keep more digits in half precision
GRID = {torch.float32: 2.0**15, torch.float16: 2.0**11, torch.bfloat16: 2.0**8}
"""Parts of 1 that the filters' weights are whole numbers of. Sums of them and of their products with pixels fit into
float32 exactly, so that their order, which depends on the size of the batch, changes nothing."""
CONTRAST, SATURATION, HUE = (OPERATIONS.index(name) for name in ("contrast", "saturation", "hue"))
BOX_PASSES, BOX_REACH = 3, 2
MAX_BLUR_RADIUS = math.sqrt(6)  # pixels; from here on PIL's boxes reach further than BOX_REACH

P = ParamSpec("P")
T = TypeVar("T")
Planes = tuple[UInt8[Tensor, "_c n s s"], ...]
"""Red, green and blue; or one tensor, every channel of which is an image of its own."""


@functools.cache
def _compiled(function: Callable[P, T]) -> Callable[P, T]:
    return torch.compile(function)


def _compiled_on_cuda(function: Callable[Concatenate[Tensor, P], T]) -> Callable[Concatenate[Tensor, P], T]:
    """Compile `function` at its first call with a tensor on CUDA."""

    @functools.wraps(function)
    def run(first: Tensor, /, *rest: P.args, **named: P.kwargs) -> T:
        return (_compiled(function) if first.is_cuda else function)(first, *rest, **named)

    return run


def as_bytes(views: Shaped[np.ndarray, "v b"]) -> UInt8[Tensor, "v b _bytes"]:
    """Drawn views (VIEW) as the bytes that travel to the device.

    Raises:
        AssertionError: a blur is wider than the kernels here.
    """
    assert views.dtype == VIEW, views.dtype
    assert views["blur_radius"].max(initial=0) < MAX_BLUR_RADIUS, views["blur_radius"].max()
    return torch.from_numpy(np.ascontiguousarray(views).view(np.uint8).reshape(*views.shape, VIEW.itemsize))


def render_batch(
    images: UInt8[Tensor, "b h w c"],
    views: Shaped[np.ndarray, "v b"] | UInt8[Tensor, "v b _bytes"],
    size: int,
    precision: torch.dtype | None = None,
) -> UInt8[Tensor, "v b c {size} {size}"]:
    """Execute drawn views of one size.

    Args:
        images: on the device of the result, filled up at the right and at the bottom to a common size. What is
            filled in leaves no trace, as every box lies in its own image.
        views: VIEW, or `as_bytes` of it, which may be pinned or on the device already.
        precision: of the resampling's factors; None is float16 on CUDA and float32 elsewhere.
    """
    raw = _to_device(views if isinstance(views, Tensor) else as_bytes(views), images.device)
    precision = precision or (torch.float16 if images.is_cuda else torch.float32)
    out = images.new_empty(*raw.shape[:2], images.shape[3], size, size)
    step = _images_at_once(images, len(raw), size, precision)
    for start in range(0, len(images), step):
        part = slice(start, start + step)
        out[:, part] = _render(images[part], raw[:, part].transpose(0, 1), size, precision).permute(2, 1, 0, 3, 4)
    return out


def _to_device(raw: UInt8[Tensor, "v b bytes"], device: torch.device) -> UInt8[Tensor, "v b bytes"]:
    if device.type == "cuda" and not (raw.is_cuda or raw.is_pinned()):
        raw = raw.pin_memory()
    return raw.to(device, non_blocking=True)


def _images_at_once(images: UInt8[Tensor, "b h w c"], num_views: int, size: int, precision: torch.dtype) -> int:
    """As many images as fit into the workspace, in parts of nearly one size."""
    num_images, height, width, channels = images.shape
    rendered = num_views * channels * size
    resampling = 2 * channels * height * width + num_views * size * (height + width) + 2 * rendered * height
    limit = max(1, WORKSPACE // (precision.itemsize * resampling + 32 * rendered * size))
    return math.ceil(num_images / math.ceil(num_images / limit)) if num_images else 1


def _render(
    images: UInt8[Tensor, "b h w c"], raw: UInt8[Tensor, "b v _bytes"], size: int, precision: torch.dtype
) -> UInt8[Tensor, "c b v {size} {size}"]:
    pixels = _resample(images, _field(raw, "box"), _field(raw, "flip"), size, precision)
    per_view = raw.flatten(0, 1)
    planes = pixels.split(1) if len(pixels) == 3 else (pixels,)
    factors = _field(per_view, "factors").float()
    for operation in _field(per_view, "order").unbind(1):
        planes = _jitter(operation, factors, *planes)
    pixels = torch.cat(_gray(_field(per_view, "grayscale"), *planes))
    kernels = _blur_kernels(_field(per_view, "blur_radius"))
    pixels = _blur_columns_and_solarize(_blur_rows(pixels, kernels), kernels, _field(per_view, "solarize"))
    rendered: Tensor = pixels.unflatten(1, raw.shape[:2])
    return rendered


def _field(raw: UInt8[Tensor, "*n _bytes"], name: str) -> Shaped[Tensor, "..."]:
    """One field of VIEW, as it lies in the bytes of the records."""
    assert VIEW.fields is not None
    kind, offset = VIEW.fields[name][:2]
    dtype = torch.from_numpy(np.empty(0, kind.base)).dtype
    values = raw[..., offset : offset + kind.itemsize].view(dtype)
    return values if kind.shape else values[..., 0]


def _resample(
    images: UInt8[Tensor, "b h w c"],
    boxes: Float64[Tensor, "b v 4"],
    flip: Bool[Tensor, "b v"],
    size: int,
    precision: torch.dtype,
) -> UInt8[Tensor, "c b*v {size} {size}"]:
    """Cut out, resize and mirror: one product with factors for the columns, then one with factors for the rows."""
    height, width = images.shape[1:3]
    across = _filters(boxes[..., 0::2], flip, size, width, precision).flatten(1, 2)
    down = _filters(boxes[..., 1::2], torch.zeros_like(flip), size, height, precision).flatten(0, 1)
    rows = torch.bmm(_centered(images, precision).flatten(1, 2), across.mT)
    rows = _rounded(rows.unflatten(2, (-1, size)).unflatten(1, (-1, height)))
    pixels = torch.bmm(down, rows.flatten(3, 4).flatten(0, 1))
    return _to_bytes(pixels.unflatten(2, (-1, size)))


def _filters(
    spans: Float64[Tensor, "b v 2"], flip: Bool[Tensor, "b v"], size: int, extent: int, precision: torch.dtype
) -> Float[Tensor, "b v {size} {extent}"]:
    """What every source pixel gives to every rendered one along an axis; `spans` are starts and lengths."""
    start, length = spans[..., None, :].unbind(-1)
    place = torch.arange(size, dtype=torch.float64, device=spans.device) + 0.5
    scale = length / size
    center = start + scale * torch.where(flip[..., None], size - place, place)
    # In two parts, as float32 has too few digits for a fraction of a pixel far from zero.
    whole = center.floor()
    hull = start.floor(), (start + length).ceil()
    parts = torch.broadcast_tensors(whole, center - whole - 0.5, scale.clamp(min=1), *hull)
    return _bicubic(torch.stack(parts).float(), extent, precision)


@_compiled_on_cuda
def _bicubic(parts: Float[Tensor, "5 b v s"], extent: int, precision: torch.dtype) -> Float[Tensor, "b v s {extent}"]:
    """The filter around whole + rest, `scale` times as wide, on pixels first to end - 1; its sum is 1."""
    whole, rest, scale, first, end = parts[..., None].unbind(0)
    taps = torch.arange(extent, dtype=torch.float32, device=parts.device)
    x = (taps - whole - rest).abs() / scale
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    values = torch.where(x < 1, near, torch.where(x < 2, far, 0.0))
    values = torch.where((taps >= first) & (taps < end), values, 0.0)
    values = (values * GRID[precision]).round()
    return ((values / values.sum(-1, keepdim=True) * GRID[precision]).round() / GRID[precision]).to(precision)


@_compiled_on_cuda
def _centered(images: UInt8[Tensor, "b h w c"], precision: torch.dtype) -> Float[Tensor, "b c h w"]:
    return (images.permute(0, 3, 1, 2).to(precision) - MIDDLE).contiguous()


@_compiled_on_cuda
def _rounded(rows: Float[Tensor, "b c h v s"]) -> Float[Tensor, "b v h c s"]:
    """To bytes' values between the two passes, as PIL, and into the order of the second."""
    return rows.round().clamp(-MIDDLE, 255 - MIDDLE).permute(0, 3, 2, 1, 4).contiguous()


@_compiled_on_cuda
def _to_bytes(pixels: Float[Tensor, "n s c s"]) -> UInt8[Tensor, "c n s s"]:
    return (pixels.round() + MIDDLE).clamp(0, 255).to(torch.uint8).permute(2, 0, 1, 3).contiguous()


def _each(values: Shaped[Tensor, " n"]) -> Shaped[Tensor, "n 1 1"]:
    return values[:, None, None]


@_compiled_on_cuda
def _jitter(operation: Int8[Tensor, " n"], factors: Float[Tensor, "n 4"], *planes: UInt8[Tensor, "_c n s s"]) -> Planes:
    """Apply to every view its own operation of OPERATIONS, or none.

    All but the hue blend the image with a degenerate one: black, the mean of its luma, or its luma.
    """
    colors = tuple(plane.float() for plane in planes)
    luma = _luma(colors)
    mean = (luma.mean((2, 3), keepdim=True) + 0.5).floor()
    chosen = _each(factors.gather(1, operation.clamp(min=0).long()[:, None])[:, 0])
    operation = _each(operation)
    degenerate = torch.where(operation == CONTRAST, mean, torch.where(operation == SATURATION, luma, 0.0))
    factor = torch.where((operation < 0) | (operation == HUE), 1.0, chosen)
    result = tuple((degenerate + factor * (color - degenerate)).clamp(0, 255) for color in colors)
    if len(colors) == 3:
        pairs = zip(_shift_hue(colors, chosen), result, strict=True)
        result = tuple(torch.where(operation == HUE, *pair) for pair in pairs)
    return tuple(color.to(torch.uint8) for color in result)


@_compiled_on_cuda
def _gray(chosen: Bool[Tensor, " n"], *planes: UInt8[Tensor, "_c n s s"]) -> Planes:
    luma = _luma(tuple(plane.float() for plane in planes)).to(torch.uint8)
    return tuple(torch.where(_each(chosen), luma, plane) for plane in planes)


def _luma(colors: tuple[Float[Tensor, "_c n s s"], ...]) -> Float[Tensor, "_c n s s"]:
    """PIL's: ITU-R 601 in units of 1/65536, so that float32 holds every sum exactly; a grey image's is itself."""
    if len(colors) == 1:
        return colors[0]
    red, green, blue = colors
    return ((19595 * red + 38470 * green + 7471 * blue + 32768) / 65536).floor()


def _shift_hue(
    colors: tuple[Float[Tensor, "1 n s s"], ...], turns: Float[Tensor, "n 1 1"]
) -> tuple[Float[Tensor, "1 n s s"], ...]:
    """Turn the hue in PIL's HSV, which is of bytes."""
    red, green, blue = colors
    value = torch.maximum(torch.maximum(red, green), blue)
    chroma = value - torch.minimum(torch.minimum(red, green), blue)
    r, g, b = ((value - color) / chroma.clamp(min=1) for color in colors)
    sixths = torch.where(red == value, b - g, torch.where(green == value, 2 + r - b, 4 + g - r))
    # Exact results lie on a grid of 1/510 or coarser: a GPU's inexact division must not fall below its point.
    hue = (torch.where(sixths < 0, sixths + 6, sixths) * 42.5 + 1e-3).floor()
    saturation = (chroma * 255 / value.clamp(min=1) + 1e-3).floor() / 255
    hue = torch.remainder(hue + (turns * 255).trunc(), 256) * 6 / 255
    distances = (torch.remainder(hue + corner, 6) for corner in (5, 3, 1))
    shares = (torch.minimum(distance, 4 - distance).clamp(0, 1) for distance in distances)
    return tuple((value * (1 - saturation * share) + 0.5).floor() for share in shares)


@_compiled_on_cuda
def _blur_kernels(radius: Float64[Tensor, " n"]) -> Float[Tensor, "n taps"]:
    """PIL's GaussianBlur of these radii in pixels, without the roundings between its three box filters.

    Source: Gwosdek et al. 2011, "Theoretical foundations of Gaussian convolution by extended box filtering".
    """
    variance = radius[:, None] ** 2 / BOX_PASSES
    whole = (((12 * variance + 1).sqrt() - 1) / 2).floor()
    reach = whole + (2 * whole + 1) * (whole * (whole + 1) - 3 * variance) / (6 * (variance - (whole + 1) ** 2))
    distance = torch.arange(-BOX_REACH, BOX_REACH + 1, device=radius.device).abs()
    kernel = box = (reach + 1 - distance).clamp(0, 1) / (2 * reach + 1)
    for _ in range(BOX_PASSES - 1):
        shifted = [F.pad(kernel * box[:, i : i + 1], (i, 2 * BOX_REACH - i)) for i in range(2 * BOX_REACH + 1)]
        kernel = torch.stack(shifted).sum(0)
    return ((kernel * GRID[torch.float32]).round() / GRID[torch.float32]).float()


@_compiled_on_cuda
def _blur_rows(pixels: UInt8[Tensor, "c n s s"], kernels: Float[Tensor, "n taps"]) -> UInt8[Tensor, "c n s s"]:
    return _filtered(pixels, kernels, dim=3)


@_compiled_on_cuda
def _blur_columns_and_solarize(
    pixels: UInt8[Tensor, "c n s s"], kernels: Float[Tensor, "n taps"], solarize: Bool[Tensor, " n"]
) -> UInt8[Tensor, "c n s s"]:
    pixels = _filtered(pixels, kernels, dim=2)
    return torch.where(_each(solarize) & (pixels >= SOLARIZE_THRESHOLD), 255 - pixels, pixels)


def _filtered(pixels: UInt8[Tensor, "c n s s"], kernels: Float[Tensor, "n taps"], dim: int) -> UInt8[Tensor, "c n s s"]:
    """Filter along `dim`; the pixels at the border are repeated beyond it."""
    places = torch.arange(pixels.shape[dim], device=pixels.device)
    total = torch.zeros_like(pixels, dtype=torch.float32)
    for tap in range(kernels.shape[1]):
        source = (places + tap - kernels.shape[1] // 2).clamp(0, pixels.shape[dim] - 1)
        total = total + _each(kernels[:, tap]) * pixels.index_select(dim, source).float()
    return total.round().to(torch.uint8)
