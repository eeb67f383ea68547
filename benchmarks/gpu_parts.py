"""What benchmarks/gpu.py measures, one function for each kind of part. Every part gives a tree for JSON."""

import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks import hf
from benchmarks.agreement import Agreement, Record, Thresholds, agree
from benchmarks.flops import H200_TB_S, H200_TFLOPS, copy_tb_s, matmul_tflops
from benchmarks.gpu_subject import Scale, Subject
from benchmarks.probe import watch
from maskmill import MaskGenerator
from maskmill.filters.apply import apply_filter
from maskmill.generate.candidates import find_candidates
from tests.parity.official import SamAutomaticMaskGenerator


def ceilings(scale: Scale, device: torch.device) -> dict[str, Any]:
    """What this machine reaches at best."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    return {
        "matmul_tflop_s": matmul_tflops(device, dtype, scale.matmul),
        "matmul_dtype": str(dtype),
        "copy_tb_s": copy_tb_s(device, scale.copy_mb),
    }


def speed(subject: Subject, mode: str, precision: str) -> dict[str, Any]:
    """images/s of generate_batch, seconds by step, peak memory, the rate against the floor."""
    generator = subject.generator(mode, precision)
    image = subject.images[0]
    first = timed(lambda: generator.generate(image), subject.device)
    again = timed(lambda: generator.generate(image), subject.device)
    images = batch(subject, again)
    reset_peak(subject.device)
    turns = [timed(lambda: generator.generate_batch(images), subject.device) / len(images) for _ in range(3)]
    seconds = statistics.median(turns[1:])  # the first warms up
    crops, prompts = subject.plan(mode)
    kept = passing(subject, mode, precision)
    least = subject.work.least_image(crops, prompts, kept["prompts_with_a_candidate"]) / 1e12
    return {
        "images_s": 1 / seconds,
        "seconds_an_image": turns,
        "images_in_a_batch": len(images),
        "first_image_seconds": first,  # compilation and tuning included
        "one_image_seconds": again,
        "peak_mb": peak_mb(subject.device, subject.bytes_beside(precision)),
        "tflop_s": subject.work.image(crops, prompts) / 1e12 / seconds,
        "floor_images_s": H200_TFLOPS / least,
        "share_of_floor": least / H200_TFLOPS / seconds,
        "crops": crops,
        "prompts": prompts,
        "passing": kept,
        "look": asdict(subject.look),
        "steps": steps(subject, generator, crops, prompts, kept),
    }


def steps(
    subject: Subject, generator: MaskGenerator, crops: int, prompts: int, kept: dict[str, float]
) -> dict[str, Any]:
    """Seconds of each step of one image by itself, and the least that each can take on an H200."""
    missing: list[str] = []
    with watch(subject.device, missing) as timeline:
        for image in subject.images[:2]:
            generator.generate(image)
    seen = {name: seconds / 2 for name, seconds in timeline.seconds().items()}
    decoder = subject.work.least_image(0, prompts, kept["prompts_with_a_candidate"])
    low_res = 4.0 * (subject.cfg.image_encoder.img_size // 4) ** 2  # bytes of one mask's logits
    floors = {
        "encode": crops * subject.work.encoder / H200_TFLOPS / 1e12,
        "decode": decoder / H200_TFLOPS / 1e12,
        "post": 3 * prompts * kept["pass_iou"] * low_res / H200_TB_S / 1e12,  # each mask read once
    }
    return {"seconds": seen, "floor_seconds": floors, "not_found": missing}


def passing(subject: Subject, mode: str, precision: str) -> dict[str, float]:
    """The shares of all masks that pass each filter, one after another, on the first image."""
    thresholds, image = Thresholds(), subject.images[0]
    generator = subject.generator(mode, precision, floor=(thresholds.pred_iou_thresh, 0.0))
    candidates = find_candidates(generator.model, image, generator.generate_config)
    crops, prompts = subject.plan(mode)
    masks = apply_filter(candidates, generator.filter_config, crops)
    stable = candidates.stability_score >= np.float32(thresholds.stability_score_thresh)
    return {
        "pass_iou": len(candidates) / prompts / 3,
        "pass_iou_and_stability": float(stable.sum()) / prompts / 3,
        "pass_nms": len(masks) / prompts / 3,
        "prompts_with_a_candidate": len(np.unique(candidates.mask_id // 3)) / prompts,
    }


def check(subject: Subject, mode: str, precision: str, against: str = "official") -> dict[str, Any]:
    """Every mask of ours against the official generator's, or against our own float32 ("maskmill")."""
    out = Agreement()
    generator = subject.generator(mode, precision)
    for i in range(subject.checked(mode)):
        theirs = subject.official_records(mode, i) if against == "official" else own_records(subject, mode, i)
        image = subject.images[i]
        out.add(
            agree(theirs, generator.generate(image), Thresholds(), f"image {i}", (against, f"maskmill {precision}"))
        )
    return out.tree()


def own_records(subject: Subject, mode: str, i: int) -> list[Record]:
    """Our float32 ones, where the official generator takes too long."""
    return subject.generator(mode, "float32").generate(subject.images[i])


def official_speed(subject: Subject, mode: str) -> dict[str, Any]:
    """images/s and peak memory of the official generator, float32 as it is released. Keeps the records for `check`."""
    settings = subject.scale.settings(mode)
    few = settings | {"points_per_side": 4}
    SamAutomaticMaskGenerator(subject.official, **few).generate(subject.images[0])  # warm-up
    reset_peak(subject.device)
    held = torch.cuda.memory_allocated() if subject.device.type == "cuda" else 0
    subject.known.clear()
    images = range(subject.checked(mode))
    seconds = [timed(partial(subject.official_records, mode, i), subject.device) for i in images]
    median = statistics.median(seconds)
    crops, prompts = subject.plan(mode)
    return {
        "images_s": 1 / median,
        "seconds": seconds,
        "peak_mb": peak_mb(subject.device, held - size_of(subject.official)),
        "tflop_s": subject.work.image(crops, prompts) / 1e12 / median,
    }


def floor_cost(subject: Subject, precision: str) -> dict[str, Any]:
    """What keeping every candidate above 0.80 / 0.90 adds to an image: found, coded, filtered."""
    low = subject.generator("default", precision, floor=(0.80, 0.90))
    high = subject.generator("default", precision)
    image = subject.images[0]

    def keep(generator: MaskGenerator) -> int:
        table = find_candidates(generator.model, image, generator.generate_config)
        for i in range(len(table)):
            table.counts(i)
        apply_filter(table, generator.filter_config, 1)
        return len(table)

    both = {"floor": low, "filter": high}
    found = {name: keep(generator) for name, generator in both.items()}
    took = {name: median_of(partial(keep, generator), subject.device) for name, generator in both.items()}
    return {"candidates": found, "seconds": took, "adds_share": took["floor"] / took["filter"] - 1}


def small_regions_cost(subject: Subject, precision: str) -> dict[str, Any]:
    """What min_mask_region_area=100 adds to an image."""
    plain, small = subject.generator("default", precision), subject.generator("default", precision)
    small.filter_config = replace(small.filter_config, min_mask_region_area=100)
    both = {"plain": plain, "small regions": small}
    took = {name: median_of(partial(g.generate, subject.images[0]), subject.device) for name, g in both.items()}
    return {"seconds": took, "adds_share": took["small regions"] / took["plain"] - 1}


def transformers_speed(subject: Subject) -> dict[str, Any]:
    """images/s of the pipeline in float32, and its masks against the official ones."""
    state = {name: value.cpu() for name, value in subject.official.state_dict().items()}
    generate = hf.transformers(subject.cfg, state, subject.device)
    settings = {"points_per_side": subject.scale.points_per_side}
    generate(subject.images[0], settings | {"points_per_side": 4})
    records: list[list[Record]] = []
    took = timed(lambda: records.append(generate(subject.images[0], settings)), subject.device)
    same = agree(
        subject.official_records("default", 0), records[0], Thresholds(), "image 0", ("official", "transformers")
    )
    return {"images_s": 1 / took, "agreement": same.tree()}


def batch(subject: Subject, seconds: float) -> list[np.ndarray]:
    """As many images as take about `batch_seconds`, at least 2."""
    number = min(subject.scale.most_images, max(2, int(subject.scale.batch_seconds / seconds)))
    return [subject.images[i % len(subject.images)] for i in range(number)]


def timed(work: Callable[[], Any], device: torch.device) -> float:
    """Seconds until the device is done."""
    begun = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - begun


def median_of(work: Callable[[], Any], device: torch.device) -> float:
    """Seconds, of five turns after one to warm up."""
    return statistics.median([timed(work, device) for _ in range(6)][1:])


def reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()


def peak_mb(device: torch.device, others: int) -> int | None:
    """Most GPU memory in tensors since the last reset, without `others`: bytes that the other side holds."""
    return (torch.cuda.max_memory_allocated() - others) >> 20 if device.type == "cuda" else None


def size_of(model: nn.Module) -> int:
    """Bytes of the parameters."""
    return sum(p.numel() * p.element_size() for p in model.parameters())


def release() -> None:
    """Give back what the last part held."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
