"""The gated feed-forward of the largest DINOv2."""

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

WIDTH_MULTIPLE = 8


class SwiGLU(nn.Module):
    """Two thirds of an MLP's hidden width, so that the gate costs no parameters (Shazeer, arXiv:2002.05202).

    Parameters have DINOv2's names: `w12` makes gate and value, `w3` the output.

    Args:
        mlp_width: hidden width of the MLP that it replaces; two thirds of it are rounded up to a multiple of 8.
    """

    def __init__(self, dim: int, mlp_width: int) -> None:
        super().__init__()
        width = -(-int(mlp_width * 2 / 3) // WIDTH_MULTIPLE) * WIDTH_MULTIPLE
        self.w12 = nn.Linear(dim, 2 * width)
        self.w3 = nn.Linear(width, dim)

    def forward(self, tokens: Float[Tensor, "b t d"]) -> Float[Tensor, "b t d"]:
        gate, value = self.w12(tokens).chunk(2, dim=-1)
        return self.w3(F.silu(gate) * value)  # type: ignore[no-any-return]
