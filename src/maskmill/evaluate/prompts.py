"""How well a model answers prompts on the masks of one image: clicks one after another, a random click, a box."""

import time
from dataclasses import dataclass

import numpy as np
import torch

from maskmill.evaluate.config import EvaluateConfig
from maskmill.prompts.annotator import Annotation, Annotator, AnnotatorConfig, iou
from maskmill.prompts.clicks import extent
from maskmill.sam.predictor import Predictor
from maskmill.sam.sam import Sam


@dataclass(frozen=True)
class PromptScores:
    """IoUs of N masks of one image. All but `oracle` are of the model's own choice: the most confident of three masks
    for a single prompt, the single answer for more.

    ious: N x clicks, after each click; a mask that is not clicked on any further keeps its last one.
    box_single: of the fourth token, which the released demo asks for with a box.
    """

    ious: np.ndarray
    oracle: np.ndarray
    random: np.ndarray
    box: np.ndarray
    box_single: np.ndarray
    seconds_image: float
    seconds_prompt: float


class Prompter:
    """A model and an image, and what many objects' prompts cost."""

    def __init__(self, model: Sam, image: np.ndarray) -> None:
        self.predictor = Predictor(model)
        self.device = model.device
        begun = time.perf_counter()
        self.predictor.set_image(image)
        self.sync()
        self.seconds_image = time.perf_counter() - begun
        self.seconds, self.prompts = 0.0, 0

    def sync(self) -> None:
        """Wait for the GPU, so that times are true."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def ask(
        self,
        points: np.ndarray | None,
        labels: np.ndarray | None,
        boxes: np.ndarray | None,
        previous: torch.Tensor | None,
        three: bool,
    ) -> tuple[np.ndarray, np.ndarray, torch.Tensor]:
        """Masks (bool N x M x H x W), scores (N x M) and logits for N objects; points N x k x 2, boxes N x 4."""
        begun = time.perf_counter()

        def tensor(x: np.ndarray | None, kind: torch.dtype) -> torch.Tensor | None:
            return None if x is None else torch.as_tensor(x, dtype=kind, device=self.device)

        coords = None if points is None else self.predictor.scale(points)
        corners = None if boxes is None else self.predictor.scale(boxes.reshape(-1, 2, 2)).reshape(-1, 4)
        masks, scores, low = self.predictor.predict_torch(
            tensor(coords, torch.float), tensor(labels, torch.int), tensor(corners, torch.float), previous, three
        )
        found, sure = masks.cpu().numpy(), scores.cpu().numpy()
        self.seconds += time.perf_counter() - begun
        self.prompts += len(found)
        return found, sure, low


def score_image(prompter: Prompter, masks: np.ndarray, names: list[str], cfg: EvaluateConfig) -> PromptScores:
    """The image's bool N x H x W masks, none empty; `names` seed each mask's chance."""
    parts = [
        score_some(prompter, masks[start : start + cfg.batch], names[start : start + cfg.batch], cfg)
        for start in range(0, len(masks), cfg.batch)
    ]
    ious, oracle, random, box, single = (np.concatenate(p) for p in zip(*parts, strict=True))
    per_prompt = prompter.seconds / max(1, prompter.prompts)
    return PromptScores(ious, oracle, random, box, single, prompter.seconds_image, per_prompt)


def score_some(prompter: Prompter, masks: np.ndarray, names: list[str], cfg: EvaluateConfig) -> tuple[np.ndarray, ...]:
    """One batch of masks: ious, oracle, random, box, box_single."""
    ious, oracle = click_through(prompter, masks, names, cfg)
    annotator = Annotator(AnnotatorConfig(first="random", seed=cfg.seed))
    begun = [annotator.begin(m, name) for m, name in zip(masks, names, strict=True)]
    for work in begun:
        work.click(None)
    answers, scores, _ = prompter.ask(*clicks_of(begun), None, None, True)
    random = confident(masks, answers, scores)
    boxes = np.array([extent(m) for m in masks], float)
    answers, scores, _ = prompter.ask(None, None, boxes, None, True)
    single, _, _ = prompter.ask(None, None, boxes, None, False)
    one = np.array([iou(m, a[0]) for m, a in zip(masks, single, strict=True)])
    return ious, oracle, random, confident(masks, answers, scores), one


def click_through(
    prompter: Prompter, masks: np.ndarray, names: list[str], cfg: EvaluateConfig
) -> tuple[np.ndarray, np.ndarray]:
    """IoU after each click (N x clicks), and the best of the three first answers (N).

    The first click is the deepest point, each next one the deepest point of the error; the logits before go in again.
    """
    annotator = Annotator(AnnotatorConfig(accept_iou=1.0, max_clicks=cfg.most_clicks, seed=cfg.seed))
    works = [annotator.begin(m, name) for m, name in zip(masks, names, strict=True)]
    ious = np.full((len(masks), cfg.most_clicks), np.nan)
    oracle = np.zeros(len(masks))
    answer: list[np.ndarray | None] = [None] * len(masks)
    logits: torch.Tensor | None = None
    alive = list(range(len(masks)))
    for k in range(cfg.most_clicks):
        going = [i for i in alive if goes_on(ious[i], k, cfg) and works[i].click(answer[i])]
        if not going:
            break
        previous = None if logits is None else logits[[alive.index(i) for i in going]]
        given = clicks_of([works[i] for i in going])
        found, scores, low = prompter.ask(*given, None, previous, k == 0)
        best = scores.argmax(1)
        for n, i in enumerate(going):
            answer[i] = found[n, best[n]]
            works[i].check(found[n, best[n]])
            ious[i, k:] = works[i].ious[-1]
            if k == 0:
                oracle[i] = max(iou(masks[i], m) for m in found[n])
        logits = low[torch.arange(len(going)), torch.as_tensor(best)][:, None]
        alive = going
    return ious, oracle


def goes_on(ious: np.ndarray, k: int, cfg: EvaluateConfig) -> bool:
    """Whether click k (from 0) on a mask still decides any figure."""
    if k < max(cfg.clicks):
        return True
    return bool(cfg.noc) and k < cfg.max_clicks and float(np.nanmax(ious[:k])) < max(cfg.noc)


def clicks_of(works: list[Annotation]) -> tuple[np.ndarray, np.ndarray]:
    """Points N x k x 2 and labels N x k; all have as many."""
    return np.array([w.points for w in works], float), np.array([w.labels for w in works])


def confident(masks: np.ndarray, answers: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """IoU of each object's mask with the answer of the highest score."""
    best = scores.argmax(1)
    return np.array([iou(m, a[b]) for m, a, b in zip(masks, answers, best, strict=True)])


def clicks_needed(ious: np.ndarray, goal: float, max_clicks: int) -> tuple[np.ndarray, np.ndarray]:
    """NoC: the first click after which the IoU reaches `goal`; max_clicks where none does, and which those are."""
    reached = ious[:, :max_clicks] >= goal
    failed = np.logical_not(reached.any(1))
    return np.where(failed, max_clicks, reached.argmax(1) + 1), np.asarray(failed)
