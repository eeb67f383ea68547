"""What a mask's outline needs to know of single pixels, past the encoder's patches. Not in SAM, where it is off.

A small encoder keeps little of what lies inside a patch of 16 x 16 pixels, so it outlines small things coarsely. A few
convolutions hand the mask decoder's last layer what the pixels of each of its cells look like, as SAM 2 hands on the
finer stages of its encoder (Ravi et al., SAM 2: Segment Anything in Images and Videos, 2024, section 4). It begins as
nothing: a model that is given it answers as before until it is trained.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from maskmill.sam.common import LayerNorm2d

CELLS = 4  # of the mask decoder, along a patch's side
WIDTH = 32


class Detail(nn.Module):
    """B x 3 x S x S normalised pixels -> B x 16 * width x S/patch x S/patch: `width` channels for each of 16 cells."""

    def __init__(self, patch_size: int, width: int) -> None:
        super().__init__()
        assert patch_size == 4 * CELLS, f"two strides of 2 make cells of 4 pixels, not of {patch_size / CELLS:g}"
        self.one = nn.Conv2d(3, WIDTH // 2, kernel_size=3, stride=2, padding=1)
        self.two = nn.Conv2d(WIDTH // 2, WIDTH, kernel_size=3, stride=2, padding=1)
        self.norm = LayerNorm2d(WIDTH)
        self.three = nn.Conv2d(WIDTH, WIDTH, kernel_size=3, padding=1)
        self.last = nn.Conv2d(WIDTH, width, kernel_size=1)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)  # type: ignore[arg-type]

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.two(F.gelu(self.one(pixels)))
        x = self.last(F.gelu(self.three(F.gelu(self.norm(x)).to(pixels.dtype))))
        # y, x of the patch's quarters, then of theirs, then the channel: as the decoder's upscaling makes them
        b, c, h, w = x.shape
        cells = x.view(b, c, h // CELLS, 2, 2, w // CELLS, 2, 2).permute(0, 3, 6, 4, 7, 1, 2, 5)
        return cells.reshape(b, CELLS * CELLS * c, h // CELLS, w // CELLS)
