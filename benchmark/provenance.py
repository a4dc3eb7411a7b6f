"""Where a result comes from: code, packages, device, data, time and memory, as provenance.json beside it."""

from __future__ import annotations

import json
import os
import platform
import resource
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from benchmark.files import write_atomically

PACKAGES = (
    "torch",
    "transformers",
    "tokenizers",
    "numpy",
    "pandas",
    "polars",
    "pyarrow",
    "scipy",
    "recbole",
    "deepspeed",
)

# Where a file that is not committed takes part in a run; elsewhere lie logs, reports and a user's settings, which
# run.yaml holds.
_OF_RUNS = ("models", "baselines", "benchmark", "config", "workflow", "Snakefile")


def git_revision() -> str:
    """The commit of the code, with "+changes" when the working tree differs from it: a committed file has changed, or
    one that git neither has nor ignores lies where runs read code and settings.

    Outside a checkout (a container, a copy on another machine) it is what HLLM_BENCH_REVISION says, or "unknown".
    """
    root = Path(__file__).parent.parent

    def ask(*arguments: str) -> str:
        return subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True).stdout

    try:
        revision = ask("rev-parse", "HEAD").strip()
        changed = ask("status", "--porcelain", "--untracked-files=no").strip()
        added = ask("ls-files", "--others", "--exclude-standard", "--", *_OF_RUNS).strip()
    except (OSError, subprocess.CalledProcessError):
        return os.environ.get("HLLM_BENCH_REVISION", "unknown")
    return revision + ("+changes" if changed or added else "")


def device_name(device: torch.device) -> str:
    """What people call the device: the GPU's name, or the processor and the number of threads used."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text().splitlines()
        model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), model)
    return f"{model}, {torch.get_num_threads()} thread{'s' * (torch.get_num_threads() > 1)}"


def peak_memory_bytes(device: torch.device) -> int:
    """The most memory held at once: allocated on the GPU, or resident in this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    scale = 1 if platform.system() == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale


def provenance(device: torch.device, **figures: Any) -> dict[str, Any]:
    """Code, packages and device, and the figures of this run."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {
        "git_revision": git_revision(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": versions,
        "device": device_name(device),
        "peak_memory_bytes": peak_memory_bytes(device),
        **figures,
    }


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a readable JSON file atomically."""
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
