"""What other projects have published about their own speed. Their figures, their machines; nothing measured here."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Published:
    who: str
    what: str
    machine: str
    images_s: str
    note: str
    source: str


SAF = "github.com/meta-pytorch/segment-anything-fast"
AO = "github.com/pytorch/ao, examples/sam2_amg_server (deleted in August 2026)"

PUBLISHED = (
    Published(
        "segment-anything-fast",
        "ViT-H, encoder + about 7 points an image, no masks after the decoder",
        "A100 40 GB",
        "2.78 -> 24.98",
        "float32 -> bf16, compile, SDPA, Triton, int8; batch 8. Counts about 10 % of the images without their time",
        f"{SAF}, experiments/p4d_results; eval_combo.py:219-236",
    ),
    Published(
        "segment-anything-fast",
        "ViT-B, the same",
        "A100 40 GB",
        "12.12 -> 94.92",
        "batch 8 -> 32",
        f"{SAF}, experiments/p4d_results",
    ),
    Published(
        "segment-anything-fast",
        "ViT-H, automatic masks, 32 x 32 points",
        "A100",
        "0.5 -> 2",
        "one image of 534 x 800; 55 GB where the official generator is fine (issue 110)",
        f"{SAF}, issue 69",
    ),
    Published(
        "torchao, SAM 2 server",
        "sam2.1_hiera_large, automatic masks, 32 x 32 points",
        "H100",
        "1.16 -> 8.3",
        "baseline -> fast + furious; 266 of 1000 images with another number of masks, left out of the comparison",
        f"{AO}, README.md:46-65",
    ),
    Published(
        "torchao, SAM 2 server",
        "the same, all options",
        "H100",
        "1.08 -> 7.19",
        "313 of 1000 images with another number of masks",
        f"{AO}, result.csv",
    ),
    Published(
        "FastSAM",
        "SAM ViT-H / ViT-B, 32 x 32 prompts; FastSAM itself",
        "RTX 3090",
        "0.48 / 0.72; 25",
        "FastSAM is another model: other masks, no parts",
        "github.com/CASIA-LMC-Lab/FastSAM, README.md",
    ),
    Published(
        "EfficientViT-SAM L0 / XL1",
        "encoder + one prompt",
        "A100, TensorRT fp16, batch 16",
        "762 / 182",
        "another encoder",
        "github.com/mit-han-lab/efficientvit, applications/efficientvit_sam/README.md",
    ),
)


def table() -> str:
    """As Markdown."""
    rows = ["| project | what | machine | images/s | note | source |", "|---|---|---|---|---|---|"]
    rows += [f"| {p.who} | {p.what} | {p.machine} | {p.images_s} | {p.note} | {p.source} |" for p in PUBLISHED]
    return "\n".join(rows)
