"""`Sam` for training from scratch: a first state that learns, and forward passes over many images at once.

Parameters and arithmetic are those of `maskmill.sam`; here it takes I images x P prompts in one pass, any input side,
and positions that autocast does not blur.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskmill.sam.image_encoder import Attention
from maskmill.sam.sam import Sam
from maskmill.sam.transformer import Attention as DecoderAttention


def initialise(model: Sam, pixels: Tensor, generator: torch.Generator) -> None:
    """Fresh weights, in place. `pixels`: B x 3 x S x S normalised training images, for the patch embedding.

    PyTorch's default layers, with three nudges that a small model on little data needs:
    - the patch embedding is a whitened principal-component basis of real patches, so no detail is lost or drowned;
    - queries and keys start alike in every attention: tokens first look at what resembles them, a click at its place;
    - absolute positions start as smooth waves.
    """
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)):
            module.reset_parameters()
    for layer in (*model.mask_decoder.modules(), *model.prompt_encoder.modules()):
        if isinstance(layer, (nn.Linear, nn.ConvTranspose2d)):  # unit gain: the default shrinks by 3 ** 0.5 a layer
            fan = layer.weight.shape[1 if isinstance(layer, nn.Linear) else 0]
            nn.init.normal_(layer.weight, std=fan**-0.5)
    whiten_patches(model, pixels)
    encoder = model.image_encoder
    side, width = encoder.pos_embed.shape[1], encoder.pos_embed.shape[3]
    with torch.no_grad():
        encoder.pos_embed.copy_(0.3 * waves(side, width)[None])
        for module in model.modules():
            if isinstance(module, Attention):
                q, k, _ = module.qkv.weight.chunk(3)
                k.copy_(q)
            elif isinstance(module, DecoderAttention) and module.q_proj.weight.shape == module.k_proj.weight.shape:
                if module.q_proj.out_features < module.q_proj.in_features:  # image <-> tokens: sharp from the start
                    nn.init.orthogonal_(module.q_proj.weight, gain=2.0)
                module.k_proj.weight.copy_(module.q_proj.weight)
        for name, value in model.named_parameters():
            if any(part in name for part in ("iou_token", "mask_tokens", "point_embeddings", "_embed.weight")):
                value.copy_(torch.randn(value.shape, generator=generator))
        for small in (model.prompt_encoder.no_mask_embed, *model.prompt_encoder.point_embeddings):
            small.weight.mul_(0.3)  # type: ignore[operator]  # the place must speak louder than the kind


def whiten_patches(model: Sam, pixels: Tensor) -> None:
    """Set the patch embedding to the leading principal components of `pixels`' patches, each of unit variance.

    Channels beyond the patch's own dimensions stay as they are.
    """
    proj = model.image_encoder.patch_embed.proj
    patch, width = int(proj.kernel_size[0]), proj.out_channels
    patches = F.unfold(pixels, patch, stride=patch).transpose(1, 2).reshape(-1, 3 * patch * patch).double()
    mean = patches.mean(0)
    values, vectors = torch.linalg.eigh((patches - mean).T @ (patches - mean) / len(patches))
    values, vectors = values.flip(0)[:width], vectors.flip(1)[:, :width]
    basis = (vectors / (values + 0.003 * values[0]).sqrt()).T  # the floor keeps sensor noise small
    with torch.no_grad():
        proj.weight[: len(basis)] = basis.reshape(-1, 3, patch, patch).to(proj.weight)
        assert proj.bias is not None
        proj.bias[: len(basis)] = -(basis @ mean).to(proj.bias)


def waves(side: int, width: int) -> Tensor:
    """side x side x width sines and cosines of the row and the column, periods from 4 cells to 2 sides."""
    periods = torch.logspace(2, 1 + torch.log2(torch.tensor(float(side))).item(), width // 4, base=2.0)
    phase = 2 * torch.pi * torch.arange(side)[:, None] / periods
    code = torch.cat([phase.sin(), phase.cos()], 1)
    return torch.cat([code[:, None].expand(side, side, -1), code[None].expand(side, side, -1)], 2)


def embed_prompts(model: Sam, coords: Tensor, codes: Tensor, side: int) -> Tensor:
    """Prompt tokens B x N x C. coords B x N x 2 pixels of a side x side input; codes B x N:
    -1 padding, 0 background point, 1 foreground point, 2 and 3 box corners."""
    enc = model.prompt_encoder
    with torch.autocast(coords.device.type, enabled=False):  # half precision would blur the place
        position = enc.pe_layer.encode((coords + 0.5) / side)
    table = torch.cat([enc.not_a_point_embed.weight] + [e.weight for e in enc.point_embeddings], 0)  # type: ignore[misc]
    return position * (codes >= 0)[..., None] + table[codes + 1]


def decode(model: Sam, embedding: Tensor, sparse: Tensor, masks: Tensor | None) -> tuple[Tensor, Tensor]:
    """All four masks of P prompts on each of I images.

    Args: embedding I x C x h x w; sparse I x P x N x C; masks None or logits I*P x 1 x 4h x 4w.
    Returns: logits I x P x 4 x 4h x 4w, predicted IoU I x P x 4.
    """
    dec, enc = model.mask_decoder, model.prompt_encoder
    images, _, h, w = embedding.shape
    prompts = sparse.shape[1]
    with torch.autocast(embedding.device.type, enabled=False):
        pe = enc.pe_layer((h, w))[None]
    if masks is None:
        dense = enc.no_mask_embed.weight[:, :, None, None]
    else:  # each prompt has an image of its own
        dense = enc.mask_downscaling(masks)
        embedding = embedding.repeat_interleave(prompts, 0)
    logits, iou = dec.predict(dec.share(embedding, dense, pe), sparse.flatten(0, 1), slice(0, None))
    return logits.float().view(images, prompts, 4, 4 * h, 4 * w), iou.float().view(images, prompts, 4)


def scale_logits(state: dict[str, Tensor], factor: float) -> dict[str, Tensor]:
    """The same model, its mask logits times `factor`; masks, predicted IoU and the use of mask prompts stay the same.

    A small model is unsure, its logits small, and SAM's stability score (offset 1 in logits) would be low everywhere;
    the factor gives that score its usual range. Folded into the last layers of the hypernetworks, and out of the first
    layer that reads mask prompts.
    """
    last = [".layers.2.weight", ".layers.2.bias"]
    up = {f"mask_decoder.output_hypernetworks_mlps.{i}{name}" for i in range(4) for name in last}
    down = "prompt_encoder.mask_downscaling.0.weight"
    assert up <= state.keys() and down in state
    return {k: v * factor if k in up else v / factor if k == down else v for k, v in state.items()}
