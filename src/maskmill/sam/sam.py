"""The whole model: encoder, prompt encoder, decoder, pixel normalisation (segment-anything, modeling/sam.py)."""

from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskmill.sam.image_encoder import ImageEncoderConfig, ImageEncoderViT
from maskmill.sam.mask_decoder import MaskDecoder, MaskDecoderConfig
from maskmill.sam.prompt_encoder import PromptEncoder
from maskmill.sam.resize import fitted, resize
from maskmill.sam.transformer import SharedImage

PIXEL_MEAN = (123.675, 116.28, 103.53)
PIXEL_STD = (58.395, 57.12, 57.375)


@dataclass(frozen=True)
class ModelConfig:
    """One file of configs/model: the official constructor arguments, and what this model's own scores recommend."""

    name: str
    image_encoder: ImageEncoderConfig
    mask_decoder: MaskDecoderConfig = field(default_factory=MaskDecoderConfig)
    mask_in_chans: int = 16
    checkpoint: str = ""


class Sam(nn.Module):
    """SAM. `state_dict()` has exactly the official keys, so published checkpoints load as they are."""

    mask_threshold = 0.0
    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__()
        enc = cfg.image_encoder
        grid = enc.img_size // enc.patch_size
        self.cfg, self.name = cfg, cfg.name
        self.precision = "float32"  # until precision.py casts it
        self.image_encoder = ImageEncoderViT(enc)
        self.prompt_encoder = PromptEncoder(
            embed_dim=enc.out_chans,
            image_embedding_size=(grid, grid),
            input_image_size=(enc.img_size, enc.img_size),
            mask_in_chans=cfg.mask_in_chans,
        )
        self.mask_decoder = MaskDecoder(cfg.mask_decoder, transformer_dim=enc.out_chans)
        self.register_buffer("pixel_mean", torch.tensor(PIXEL_MEAN).view(-1, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(PIXEL_STD).view(-1, 1, 1), persistent=False)

    @property
    def device(self) -> torch.device:
        return self.pixel_mean.device

    @property
    def img_size(self) -> int:
        """The side of the square input, in pixels."""
        return self.image_encoder.img_size

    def input_size(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) after the long side is scaled to `img_size`."""
        return fitted(height, width, self.img_size)

    def resize(self, image: np.ndarray) -> np.ndarray:
        """H x W x 3 uint8 -> long side at `img_size`, by Pillow's antialiased bilinear filter, as SAM was trained."""
        h, w = self.input_size(*image.shape[:2])
        return resize(image, h, w)

    def preprocess(self, x: Tensor) -> Tensor:
        """... x 3 x h x w pixels of 0-255 -> normalised, zero-padded right and bottom to the square input."""
        x = (x - self.pixel_mean) / self.pixel_std
        h, w = x.shape[-2:]
        return F.pad(x, (0, self.img_size - w, 0, self.img_size - h))

    def encode(self, image: np.ndarray) -> tuple[Tensor, tuple[int, int]]:
        """H x W x 3 uint8 -> its embedding (1 x C x h x w) and the (height, width) it had at the encoder's input."""
        resized = self.resize(image)
        x = torch.as_tensor(resized, device=self.device).permute(2, 0, 1).contiguous()[None]
        return self.image_encoder(self.preprocess(x)), (resized.shape[0], resized.shape[1])

    def share(self, embedding: Tensor) -> SharedImage:
        """What all prompts without a mask share, for embeddings G x C x h x w."""
        no_mask = self.prompt_encoder.no_mask_embed.weight[:, :, None, None]
        return self.mask_decoder.share(embedding, no_mask, self.prompt_encoder.get_dense_pe())

    def postprocess_masks(self, masks: Tensor, input_size: tuple[int, int], original_size: tuple[int, int]) -> Tensor:
        """Low-resolution logits B x M x 4h x 4w -> logits at `original_size`, in the two official bilinear steps."""
        masks = F.interpolate(masks, (self.img_size, self.img_size), mode="bilinear", align_corners=False)
        masks = masks[..., : input_size[0], : input_size[1]]
        return F.interpolate(masks, original_size, mode="bilinear", align_corners=False)
