"""Procedural scenes with exact masks: objects with parts, materials, light, a camera."""

from maskmill.training.scenes.base import SMALLEST, Image, Mask, Rng, Sample
from maskmill.training.scenes.canvas import Canvas
from maskmill.training.scenes.config import KINDS, SceneConfig
from maskmill.training.scenes.draw import draw_scene
from maskmill.training.scenes.textures import Textures, recolour

__all__ = [
    "KINDS", "SMALLEST", "Canvas", "Image", "Mask", "Rng", "Sample", "SceneConfig", "Textures", "draw_scene",
    "recolour",
]  # fmt: skip
