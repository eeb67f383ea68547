"""The identity of a model's weights, found in a process of its own.

A driver lives as long as its build. torch, and the weights themselves (2.5 GB for vit_h), need not.
"""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor


def weights_sha256(name: str, checkpoint: str | None = None) -> str:
    """The sha256 of the weight file. UserError for what `load_model` would refuse."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as apart:
        return apart.submit(check_weights, name, checkpoint).result()


def check_weights(name: str, checkpoint: str | None) -> str:
    """Runs in that process."""
    from maskmill.sam.build import checkpoint_sha256

    return checkpoint_sha256(name, checkpoint)
