"""Images, points and boxes at the encoder's size, for users of the official package (utils/transforms.py)."""

import numpy as np
import torch
from torch import Tensor

from maskmill.sam.resize import fitted, resize


class ResizeLongestSide:
    """What scales an image's long side to `target_length` pixels, and prompts with it. Sizes are (height, width)."""

    def __init__(self, target_length: int) -> None:
        self.target_length = target_length

    def scale(self, original_size: tuple[int, int]) -> tuple[float, float]:
        """The factors of x and y; they differ a little, as each side is rounded to pixels."""
        (old_h, old_w), (new_h, new_w) = original_size, fitted(*original_size, self.target_length)
        return new_w / old_w, new_h / old_h

    def apply_image(self, image: np.ndarray) -> np.ndarray:
        """H x W x 3 uint8 -> h x w x 3 uint8, by Pillow's antialiased bilinear filter."""
        return resize(image, *fitted(image.shape[0], image.shape[1], self.target_length))

    def apply_coords(self, coords: np.ndarray, original_size: tuple[int, int]) -> np.ndarray:
        """... x 2 (x, y) in image pixels -> in input pixels, float64."""
        return coords.astype(np.float64) * np.array(self.scale(original_size))

    def apply_boxes(self, boxes: np.ndarray, original_size: tuple[int, int]) -> np.ndarray:
        """XYXY in image pixels -> N x 4 in input pixels, float64."""
        return self.apply_coords(boxes.reshape(-1, 2, 2), original_size).reshape(-1, 4)

    def apply_coords_torch(self, coords: Tensor, original_size: tuple[int, int]) -> Tensor:
        """... x 2 (x, y) in image pixels -> in input pixels, float32 on the same device."""
        x, y = self.scale(original_size)
        return torch.stack([coords[..., 0].float() * x, coords[..., 1].float() * y], dim=-1)

    def apply_boxes_torch(self, boxes: Tensor, original_size: tuple[int, int]) -> Tensor:
        """XYXY in image pixels -> N x 4 in input pixels, float32 on the same device."""
        return self.apply_coords_torch(boxes.reshape(-1, 2, 2), original_size).reshape(-1, 4)
