"""What a measurement was made on."""

import os
from pathlib import Path
from typing import Any


def machine() -> dict[str, Any]:
    """CPU model, cores, torch, threads, and what else ran."""
    import torch  # not by the parts of a benchmark that measure memory without it

    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "unknown")
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "load_average_before": os.getloadavg()[0],
    }
