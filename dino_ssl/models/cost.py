"""What a network costs, measured on it: multiplications, and the activations that training keeps."""

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode


@dataclass(frozen=True)
class Cost:
    """Of images of one size.

    Attributes:
        macs: multiplications with addition of convolutions and matrix products, one image forward.
        bytes_per_image: of activations that the backward pass needs, in float32, with PyTorch's attention on the CPU.
        bytes_of_any_batch: the same, however many images there are: of a table of positions for this size, say.
    """

    macs: int
    bytes_per_image: int
    bytes_of_any_batch: int

    def activations(self, num_images: int) -> int:
        """Bytes that a forward pass of so many images keeps."""
        return self.bytes_of_any_batch + num_images * self.bytes_per_image


def cost_of(backbone: nn.Module, size: int, channels: int = 3) -> Cost:
    """Measure a network with a few black images; it is in training mode afterwards.

    Args:
        size: side of the images, pixels.
    """
    # Of one image batch norm may have nothing to normalise over.
    two, three = (activation_bytes(backbone.train(), torch.zeros(n, channels, size, size)) for n in (2, 3))
    return Cost(macs_of(backbone, size, channels), three - two, 3 * two - 2 * three)


def macs_of(backbone: nn.Module, size: int, channels: int = 3) -> int:
    """Multiplications of one image, counted without computing them."""
    shapes = copy.deepcopy(backbone).to("meta").eval()
    # Only the attention that is written out consists of products that are counted.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        shapes(torch.zeros(1, channels, size, size, device="meta"))
    return int(counter.get_total_flops()) // 2


def activation_bytes(module: nn.Module, *inputs: Tensor) -> int:
    """Bytes that a forward pass keeps for the backward pass, parameters and buffers of the module apart."""
    own = {StorageWeakRef(tensor.untyped_storage()) for tensor in (*module.parameters(), *module.buffers())}
    kept: dict[StorageWeakRef, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if (place := StorageWeakRef(storage)) not in own:
            kept[place] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = module(*inputs)  # while it lives, no storage is freed, and none is counted as another
    del output
    return sum(kept.values())
