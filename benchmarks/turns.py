"""One case of the CPU benchmark: every peer in its own process, turn by turn on the same images."""

import statistics
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import hf
from benchmarks.agreement import Agreement, Thresholds, agree
from benchmarks.flops import count
from benchmarks.pictures import pictures
from benchmarks.shaped import shaped_model
from benchmarks.shaped_fit import embed, look
from benchmarks.sides import Side, SideFailed
from maskmill import load_model
from maskmill.config import resolve
from maskmill.sam.build import load_config
from tests.parity.official import official_sam

PEERS = ("official", "maskmill", "transformers")
SMALL_REGIONS = 100

Replies = list[list[dict[str, Any]]]  # of each image, of each turn


@dataclass(frozen=True)
class Case:
    """A model at an image size. A full turn of the official ViT-B takes minutes: its warm-up has few points."""

    name: str
    model: str
    height: int
    width: int
    images: int
    turns: int
    full_warm_up: bool = True


CASES = (
    Case("nano-480x640", "nano", 480, 640, images=3, turns=3),
    Case("nano-1500x2250", "nano", 1500, 2250, images=2, turns=3),
    Case("vit_b-1500x2250", "vit_b", 1500, 2250, images=1, turns=1, full_warm_up=False),
)


@dataclass(frozen=True)
class Options:
    """What the command line may change. None: as the case says."""

    prompts: int = 32  # a side
    images: int | None = None
    turns: int | None = None
    threads: int = 1
    peers: tuple[str, ...] = PEERS
    keep_freed_memory: bool = False


class Bench:
    """One case: its weight file, its images as files, and one process for each peer."""

    def __init__(self, case: Case, options: Options, folder: Path) -> None:
        self.case, self.turns = case, options.turns or case.turns
        cfg = resolve(model=case.model)
        filters, self.floor = cfg.filter, (cfg.generate.floor_pred_iou, cfg.generate.floor_stability)
        self.settings: dict[str, Any] = {
            "points_per_side": options.prompts,
            "pred_iou_thresh": filters.pred_iou_thresh,
            "stability_score_thresh": filters.stability_score_thresh,
        }
        self.images = [folder / f"{i}.npy" for i in range(options.images or case.images)]
        made = pictures(len(self.images), case.height, case.width)
        for path, image in zip(self.images, made, strict=True):
            np.save(path, image)
        self.weights = folder / "weights.pth"
        torch.save(self.make_weights(made[0]), self.weights)
        self.sides: dict[str, Side] = {}
        self.skipped: dict[str, str] = {}
        for peer in options.peers:
            why = hf.missing_for_transformers() if peer == "transformers" else ""
            if why:
                self.skipped[peer] = why
                continue
            self.sides[peer] = Side(
                peer, case.model, self.weights, options.threads, options.keep_freed_memory, folder / f"{peer}.log"
            )

    def make_weights(self, image: np.ndarray) -> dict[str, torch.Tensor]:
        """nano's own, else shaped ones. What they look like goes into the result."""
        iou, stability = self.settings["pred_iou_thresh"], self.settings["stability_score_thresh"]
        cfg = load_config(self.case.model)
        if self.case.model == "nano":
            model = official_sam(cfg)
            model.load_state_dict(load_model("nano", device="cpu").state_dict())
            self.look = look(model, embed(model, image), iou)
        else:
            model, self.look = shaped_model(cfg, image, iou, stability)
        state: dict[str, torch.Tensor] = model.state_dict()
        return state

    def run(self) -> dict[str, Any]:
        """All measurements of the case, as JSON."""
        result: dict[str, Any] = {"case": asdict(self.case), "settings": self.settings, "turns": self.turns}
        result["weights"] = "nano's own" if self.case.model == "nano" else "shaped (benchmarks/shaped.py)"
        result["skipped"] = self.skipped
        result["prompts"] = f"{self.settings['points_per_side']} x {self.settings['points_per_side']}"
        self.warm_up()
        replies = self.take_turns()
        result["peers"] = {peer: self.figures(peer, replies[peer]) for peer in self.sides}
        result["agreement"] = {
            peer: self.compare(replies["official"], replies[peer], peer).tree()
            for peer in self.sides
            if peer != "official" and "official" in self.sides
        }
        result["small_regions"] = self.small_regions(replies)
        result["candidates"] = self.candidates(replies)
        for side in self.sides.values():
            side.close()
        return result

    def variants(self) -> dict[str, tuple[str, dict[str, Any], tuple[float, float] | None]]:
        """What is timed: label -> peer, settings, floor. For small regions the official ViT-B takes too long."""
        small = self.settings | {"min_mask_region_area": SMALL_REGIONS}
        made: dict[str, tuple[str, dict[str, Any], tuple[float, float] | None]] = {
            peer: (peer, self.settings, None) for peer in self.sides
        }
        if "official" in self.sides and self.case.full_warm_up:
            made["official, small regions"] = ("official", small, None)
        if "maskmill" in self.sides:
            made["maskmill, small regions"] = ("maskmill", small, None)
            made["maskmill, candidates"] = ("maskmill", self.settings, self.floor)
        return made

    def warm_up(self) -> None:
        settings = self.settings if self.case.full_warm_up else self.settings | {"points_per_side": 2}
        for peer in list(self.sides):
            try:
                self.sides[peer].ask(self.images[0], settings)
            except SideFailed as e:
                if peer != "transformers":
                    raise
                self.skipped[peer] = f"failed: {e}"
                del self.sides[peer]

    def take_turns(self) -> dict[str, Replies]:
        """For each variant and image the replies of its turns. The variants alternate."""
        variants = self.variants()
        replies: dict[str, Replies] = {label: [[] for _ in self.images] for label in variants}
        for i, image in enumerate(self.images):
            for turn in range(self.turns):
                for label, (peer, settings, floor) in variants.items():
                    replies[label][i].append(self.sides[peer].ask(image, settings, floor))
                    took = replies[label][i][-1]["seconds"]
                    print(f"  image {i}, turn {turn}: {label} {took:.2f} s", file=sys.stderr, flush=True)
        return replies

    def figures(self, peer: str, replies: Replies) -> dict[str, Any]:
        """Seconds, memory and rate of one peer."""
        seconds = [[reply["seconds"] for reply in turns] for turns in replies]
        median = middle(replies)
        work = count(load_config(self.case.model)).image(1, self.settings["points_per_side"] ** 2)
        return {
            "seconds": seconds,
            "median_seconds": median,
            "images_s": 1 / median,
            "loaded_mb": self.sides[peer].ready["loaded_mb"],
            "peak_mb": max(reply["peak_mb"] for turns in replies for reply in turns),
            "gflop_s": work / median / 1e9,
            "masks": [len(turns[0]["records"]) for turns in replies],
        }

    def compare(self, first: Replies, second: Replies, peer: str) -> Agreement:
        """The records of the first turn, over all images."""
        thresholds = Thresholds(self.settings["pred_iou_thresh"], self.settings["stability_score_thresh"])
        out = Agreement()
        for i, (a, b) in enumerate(zip(first, second, strict=True)):
            out.add(agree(a[0]["records"], b[0]["records"], thresholds, f"image {i}", ("official", peer)))
        return out

    def small_regions(self, replies: dict[str, Replies]) -> dict[str, Any]:
        """What min_mask_region_area adds."""
        out: dict[str, Any] = {"min_mask_region_area": SMALL_REGIONS}
        labels = {peer: f"{peer}, small regions" for peer in PEERS if f"{peer}, small regions" in replies}
        for peer, label in labels.items():
            before, after = middle(replies[peer]), middle(replies[label])
            out[peer] = {"adds_seconds": after - before, "adds_share": after / before - 1}
        if len(labels) == 2:
            both = [replies[label] for label in labels.values()]
            out["agreement"] = self.compare(both[0], both[1], "maskmill").tree()
        return out

    def candidates(self, replies: dict[str, Replies]) -> dict[str, Any]:
        """What keeping every candidate above the floor adds, and the shares of masks that pass each step."""
        if "maskmill" not in self.sides:
            return {}
        plain, kept = replies["maskmill"], replies["maskmill, candidates"]
        lowest = (self.settings["pred_iou_thresh"], 0.0)
        scored = [self.sides["maskmill"].ask(image, self.settings, lowest)["counts"] for image in self.images]
        prompts = self.settings["points_per_side"] ** 2
        shares = np.mean(scored, axis=0) / [3 * prompts, 3 * prompts, 3 * prompts, prompts]
        return {
            "floor": self.floor,
            "candidates": [turns[0]["counts"][0] for turns in kept],
            "adds_seconds": middle(kept) - middle(plain),
            "adds_share": middle(kept) / middle(plain) - 1,
            "pass_iou": shares[0],
            "pass_iou_and_stability": shares[1],
            "pass_nms": shares[2],
            "prompts_with_a_candidate": shares[3],
            "look": asdict(self.look),
        }


def middle(replies: Replies) -> float:
    """Seconds an image: the median of the turns of each image, and the median of these."""
    return statistics.median(statistics.median(reply["seconds"] for reply in turns) for turns in replies)
