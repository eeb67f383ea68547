"""What the steps of a round share: an embedded image, its id."""

import numpy as np
import torch
from torch import Tensor

from maskmill.sam.predictor import Predictor
from maskmill.sam.sam import Sam
from maskmill.storage.sources import image_id
from maskmill.training.embeddings import EmbeddingCache


def number(name: str) -> int:
    """The id of an image of an annotated set, from its name there."""
    return image_id("", name)


def cached_predictor(model: Sam, image: np.ndarray, cache: EmbeddingCache) -> Predictor:
    """A predictor for one H x W x 3 uint8 image, whose embedding comes from the cache if it is there."""
    predictor = Predictor(model)
    pixels = torch.from_numpy(np.ascontiguousarray(model.resize(image).transpose(2, 0, 1)))

    @torch.no_grad()
    def make() -> Tensor:
        return model.image_encoder(model.preprocess(pixels[None].to(model.device).float()))

    predictor.set_embedding(cache.get(pixels, make).to(model.device), (image.shape[0], image.shape[1]))
    return predictor
