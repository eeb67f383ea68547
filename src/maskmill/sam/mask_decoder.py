"""Prompt tokens + image embedding -> masks and their predicted IoU (paper appendix A; modeling/mask_decoder.py).

The official function with less work; see also transformer.py. The predicted IoU comes first, and `predict_passing`
upscales only what it lets through. Upscaling runs on tokens, B x T x C: a transposed convolution whose stride is its
kernel is one matrix product.
"""

import itertools
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskmill.sam.common import LayerNorm2d, to_device
from maskmill.sam.transformer import Pieces, SharedImage, TwoWayTransformer, TwoWayTransformerConfig


@dataclass(frozen=True)
class MaskDecoderConfig:
    num_multimask_outputs: int = 3
    iou_head_depth: int = 3
    iou_head_hidden_dim: int = 256
    transformer: TwoWayTransformerConfig = field(default_factory=TwoWayTransformerConfig)


class MaskDecoder(nn.Module):
    """Four mask tokens: token 0 answers unambiguous prompts, tokens 1-3 are whole, part and subpart."""

    def __init__(self, cfg: MaskDecoderConfig, transformer_dim: int) -> None:
        super().__init__()
        self.transformer = TwoWayTransformer(cfg.transformer, transformer_dim)
        self.num_mask_tokens = cfg.num_multimask_outputs + 1
        self.iou_token = nn.Embedding(1, transformer_dim)
        self.mask_tokens = nn.Embedding(self.num_mask_tokens, transformer_dim)
        self.output_upscaling = nn.Sequential(
            nn.ConvTranspose2d(transformer_dim, transformer_dim // 4, kernel_size=2, stride=2),
            LayerNorm2d(transformer_dim // 4),
            nn.GELU(),
            nn.ConvTranspose2d(transformer_dim // 4, transformer_dim // 8, kernel_size=2, stride=2),
            nn.GELU(),
        )
        self.output_hypernetworks_mlps = nn.ModuleList(
            MLP(transformer_dim, transformer_dim, transformer_dim // 8, num_layers=3)
            for _ in range(self.num_mask_tokens)
        )
        self.iou_prediction_head = MLP(
            transformer_dim, cfg.iou_head_hidden_dim, self.num_mask_tokens, num_layers=cfg.iou_head_depth
        )

    def forward(
        self, image_embeddings: Tensor, image_pe: Tensor, sparse: Tensor, dense: Tensor, multimask_output: bool
    ) -> tuple[Tensor, Tensor]:
        """B prompts of one image, as the official decoder takes them.

        Args: image_embeddings, image_pe 1 x C x h x w; sparse B x N x C and dense B x C x h x w of the prompt encoder.
        Returns: mask logits B x M x 4h x 4w and predicted IoU B x M, M = 3 with multimask_output, else 1.
        """
        same = dense.stride(0) == 0  # without mask prompts the prompt encoder expands one map over the batch
        shared = self.share(image_embeddings, dense[:1] if same else dense, image_pe)
        return self.predict(shared, sparse, slice(1, None) if multimask_output else slice(0, 1))

    def share(self, embedding: Tensor, dense: Tensor, pe: Tensor) -> SharedImage:
        """What all prompts of an image share.

        Args: embedding 1 or G x C x h x w, with more channels if the encoder has `detail`; dense prompt
        1 or G x C x h x w; pe 1 x C x h x w.
        """
        dtype, c = self.iou_token.weight.dtype, dense.shape[1]
        shared = self.transformer.share((embedding[:, :c] + dense).to(dtype), pe.to(dtype))
        if embedding.shape[1] == c:
            return shared
        detail = embedding[:, c:].to(dtype).flatten(2).transpose(1, 2)
        return replace(shared, detail=list(detail.tensor_split(len(shared.tokens), dim=1)))

    def predict(self, shared: SharedImage, sparse: Tensor, chosen: slice) -> tuple[Tensor, Tensor]:
        """The chosen ones of the four masks.

        Args: sparse B x N x C, B / G prompts for each of G images, one image's after another.
        Returns: logits B x M x 4h x 4w, predicted IoU B x M.
        """
        points = self.tokens(sparse)
        queries, image = self.transformer(points, shared)
        iou = self.predict_iou(queries, points, image, shared.pe)
        return self.predict_logits(queries, points, image, shared, chosen), iou[:, chosen]

    def predict_passing(self, shared: SharedImage, sparse: Tensor, floor: float) -> tuple[Tensor, Tensor, Tensor]:
        """Of masks 1-3 of every prompt those whose predicted IoU exceeds `floor` (0: all). Arguments as in `predict`.

        Prompts go on to be upscaled an eighth of B at a time, always as many: a matrix product of another size may
        round otherwise, and a mask must not depend on its neighbours.
        Returns: logits K x 4h x 4w, predicted IoU K, their place among the B * 3 masks (int64 on the CPU, ascending).
        """
        points = self.tokens(sparse)
        queries, image = self.transformer(points, shared)
        iou = self.predict_iou(queries, points, image, shared.pe)[:, 1:]
        passed = passes(iou, floor).cpu()  # here, and only here, a GPU is waited for
        place = passed.flatten().nonzero()[:, 0]
        kept = passed.any(dim=1).nonzero()[:, 0]
        logits = [iou.new_empty(0, *(4 * side for side in shared.size))]
        step = max(1, len(points) // 8)
        for start in range(0, len(kept), step):
            some = kept[start : start + step]
            i = to_device(filled(some, step), iou.device)
            of = shared.images(i, len(points))
            masks = self.predict_logits(queries[i], points[i], [x[i] for x in image], of, slice(1, None))
            logits.append(masks.flatten(0, 1)[to_device(passed[some].flatten().nonzero()[:, 0], iou.device)])
        return torch.cat(logits), iou.flatten()[to_device(place, iou.device)], place

    def tokens(self, sparse: Tensor) -> Tensor:
        """B x N x C prompt tokens behind the IoU token and the four mask tokens."""
        learned = torch.cat([self.iou_token.weight, self.mask_tokens.weight])
        return torch.cat([learned.expand(len(sparse), -1, -1), sparse.to(learned.dtype)], dim=1)

    def predict_iou(self, queries: Tensor, points: Tensor, image: Pieces, pe: Pieces) -> Tensor:
        """B x 4. Takes the IoU token alone."""
        return self.iou_prediction_head(self.transformer.last(queries[:, :1], points[:, :1], image, pe)[:, 0])

    def predict_logits(
        self, queries: Tensor, points: Tensor, image: Pieces, shared: SharedImage, chosen: slice
    ) -> Tensor:
        """B x M x 4h x 4w for the chosen ones of the four mask tokens."""
        queries, points = (x[:, 1 : 1 + self.num_mask_tokens][:, chosen] for x in (queries, points))
        out = self.transformer.last(queries, points, image, shared.pe)
        mlps = list(self.output_hypernetworks_mlps)[chosen]
        return self.upscale(image, torch.stack([mlp(out[:, i]) for i, mlp in enumerate(mlps)], dim=1), shared)

    def upscale(self, image: Pieces, hyper: Tensor, shared: SharedImage) -> Tensor:
        """Image tokens B x T x C and hypernetworks' answers B x M x C/8 -> their products B x M x 4h x 4w."""
        first, norm, _, second, _ = self.output_upscaling
        assert isinstance(norm, LayerNorm2d)
        one, two = as_linear(first), as_linear(second)
        rows = []
        for x, detail in zip(image, shared.detail or itertools.repeat(None), strict=shared.detail is not None):
            x = F.linear(x, *one).view(*x.shape[:2], 4, -1)  # B x t x 4 x C/4
            x = F.gelu(F.layer_norm(x, x.shape[-1:], norm.weight, norm.bias, norm.eps))
            x = F.linear(x, *two)  # B x t x 4 x 4 * C/8
            if detail is not None:
                x = (x.view(len(detail), -1, *detail.shape[1:]) + detail[:, None]).view(x.shape)
            x = F.gelu(x)
            rows.append(hyper @ x.view(len(x), -1, hyper.shape[-1]).transpose(1, 2).to(hyper.dtype))
        # token (y, x), then its four parts (y, x), then theirs
        cells = torch.cat(rows, dim=2).view(*hyper.shape[:2], *shared.size, 2, 2, 2, 2).permute(0, 1, 2, 4, 6, 3, 5, 7)
        return cells.reshape(*hyper.shape[:2], *(4 * side for side in shared.size))


class MLP(nn.Module):
    """num_layers linear layers with ReLU between them. They may have more bits than their input: see precision.py."""

    def __init__(self, input_dim: int, hidden_dim: int, output_dim: int, num_layers: int) -> None:
        super().__init__()
        widths = [input_dim] + [hidden_dim] * (num_layers - 1) + [output_dim]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(widths))

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(self.dtype)
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        return self.layers[-1](x)


def passes(iou: Tensor, floor: float) -> Tensor:
    """Which predicted IoUs lie strictly above the floor, as in the official code; a floor of 0 is off."""
    return iou > floor if floor > 0 else torch.ones_like(iou, dtype=torch.bool)


def as_linear(conv: nn.Module) -> tuple[Tensor, Tensor]:
    """Weight and bias of a 2 x 2 transposed convolution with stride 2 as a linear layer to (y, x, channel)."""
    assert isinstance(conv, nn.ConvTranspose2d) and conv.bias is not None
    return conv.weight.permute(2, 3, 1, 0).flatten(0, 2), conv.bias.repeat(4)


def filled(x: Tensor, size: int) -> Tensor:
    """x with its last row repeated until there are `size`."""
    return torch.cat([x, x[-1:].expand(size - len(x), *x.shape[1:])])
