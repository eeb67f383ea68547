"""`Predictor`: a drop-in for segment-anything's SamPredictor: one image embedded once, then any number of prompts."""

import numpy as np
import torch
from torch import Tensor

from maskmill.errors import UserError
from maskmill.sam.sam import Sam
from maskmill.sam.transform import ResizeLongestSide
from maskmill.sam.transformer import SharedImage


class Predictor:
    """Masks for given points, box or mask on one image."""

    def __init__(self, model: Sam) -> None:
        self.model = model
        self.transform = ResizeLongestSide(model.img_size)
        self.reset_image()

    def reset_image(self) -> None:
        """Forget the image."""
        self.is_image_set = False
        self.features: Tensor | None = None
        self.shared: tuple[Tensor, SharedImage] | None = None
        self.original_size = (0, 0)
        self.input_size = (0, 0)

    @property
    def device(self) -> torch.device:
        return self.model.device

    @torch.no_grad()
    def set_image(self, image: np.ndarray, image_format: str = "RGB") -> None:
        """Embed an H x W x 3 uint8 image; `image_format` is RGB or BGR."""
        if image_format not in ("RGB", "BGR"):
            raise UserError(f"image_format is {image_format!r}: expected RGB or BGR")
        self.reset_image()  # before what may fail: no prompt must meet the image before
        rgb = image if image_format == "RGB" else np.ascontiguousarray(image[..., ::-1])
        self.features, self.input_size = self.model.encode(rgb)
        self.original_size = (image.shape[0], image.shape[1])
        self.is_image_set = True

    @torch.no_grad()
    def set_torch_image(self, transformed_image: Tensor, original_image_size: tuple[int, int]) -> None:
        """Embed a 1 x 3 x h x w image of 0-255 whose long side is already the model's input size."""
        shape = tuple(transformed_image.shape)
        if len(shape) != 4 or shape[1] != 3 or max(shape[2:]) != self.model.img_size:
            raise UserError(
                f"transformed_image is {shape}: expected 1 x 3 x h x w with long side {self.model.img_size}"
            )
        self.reset_image()
        self.features = self.model.image_encoder(self.model.preprocess(transformed_image))
        self.input_size = (shape[2], shape[3])
        self.original_size = original_image_size
        self.is_image_set = True

    def set_embedding(self, embedding: Tensor, original_size: tuple[int, int]) -> None:
        """Take an embedding 1 x C x h x w that was made before, of an image of (height, width)."""
        self.features = embedding
        self.input_size, self.original_size = self.model.input_size(*original_size), original_size
        self.is_image_set = True

    def get_image_embedding(self) -> Tensor:
        """1 x C x h x w."""
        if self.features is None:
            raise RuntimeError("no image is set: call set_image first")
        return self.features

    def shared_image(self) -> SharedImage:
        """What all prompts share: made once for an embedding, with the weights that the model has then."""
        features = self.get_image_embedding()
        if self.shared is None or self.shared[0] is not features:
            self.shared = features, self.model.share(features)
        return self.shared[1]

    def scale(self, coords: np.ndarray) -> np.ndarray:
        """... x 2 (x, y) in image pixels -> in input pixels, float64."""
        return self.transform.apply_coords(coords, self.original_size)  # not by input_size, which may be rounded

    def predict(
        self,
        point_coords: np.ndarray | None = None,
        point_labels: np.ndarray | None = None,
        box: np.ndarray | None = None,
        mask_input: np.ndarray | None = None,
        multimask_output: bool = True,
        return_logits: bool = False,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Masks for one object.

        Args: point_coords N x 2 (x, y) and point_labels N (1 = object, 0 = background) in image pixels; box XYXY;
        mask_input 1 x 4h x 4w, the low-resolution logits of an earlier call.
        Returns: masks C x H x W (bool, or float logits), predicted IoU C, low-resolution logits C x 4h x 4w; C is 3
        with multimask_output, else 1.
        """
        self.get_image_embedding()  # RuntimeError if there is none
        points = labels = boxes = masks = None
        if point_coords is not None:
            if point_labels is None:
                raise UserError("point_labels is missing: every point needs a label, 1 for object or 0 for background")
            points = torch.as_tensor(self.scale(point_coords), dtype=torch.float, device=self.device)[None]
            labels = torch.as_tensor(point_labels, dtype=torch.int, device=self.device)[None]
        if box is not None:
            corners = self.scale(np.asarray(box).reshape(2, 2)).reshape(1, 4)
            boxes = torch.as_tensor(corners, dtype=torch.float, device=self.device)
        if mask_input is not None:
            masks = torch.as_tensor(mask_input, dtype=torch.float, device=self.device)[None]
        full, iou, low_res = self.predict_torch(points, labels, boxes, masks, multimask_output, return_logits)
        return full[0].cpu().numpy(), iou[0].cpu().numpy(), low_res[0].cpu().numpy()

    @torch.no_grad()
    def predict_torch(
        self,
        point_coords: Tensor | None,
        point_labels: Tensor | None,
        boxes: Tensor | None = None,
        mask_input: Tensor | None = None,
        multimask_output: bool = True,
        return_logits: bool = False,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Masks for B objects: points B x N x 2 and labels B x N, boxes B x 4, masks B x 1 x 4h x 4w, in input pixels.
        One mask (1 x 1 x 4h x 4w) is that of every object.

        Returns: masks B x C x H x W, predicted IoU B x C, low-resolution logits B x C x 4h x 4w.
        """
        points = None
        if point_coords is not None:
            assert point_labels is not None, "points come with labels"
            points = (point_coords, point_labels)
        sparse, dense = self.model.prompt_encoder(points=points, boxes=boxes, masks=mask_input)
        shared, chosen = self.shared_image(), slice(1, None) if multimask_output else slice(0, 1)
        decoder, parts = self.model.mask_decoder, []
        dense = dense.expand(len(sparse), -1, -1, -1)
        for some, maps in zip(*(x.split(shared.batch_size(len(sparse))) for x in (sparse, dense)), strict=True):
            if mask_input is not None:  # then each prompt has image tokens of its own
                pe = self.model.prompt_encoder.get_dense_pe()
                shared = decoder.share(self.get_image_embedding(), maps, pe)
            parts.append(decoder.predict(shared, some, chosen))
        low_res, iou = (torch.cat(x) for x in zip(*parts, strict=True))
        full = self.model.postprocess_masks(low_res, self.input_size, self.original_size)
        return (full if return_logits else full > self.model.mask_threshold), iou, low_res
