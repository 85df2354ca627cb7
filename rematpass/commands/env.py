"""``rematpass env``: versions, hardware and settings, for a bug report. Works without torch."""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rematpass import __version__
from rematpass.commands.arguments import Commands, add_command
from rematpass.config import set_variables

_EXAMPLES = """examples:
  rematpass env           paste this into a bug report
  rematpass env --json    the same as one JSON document
"""
_PACKAGES = ("triton", "ortools", "numpy", "rich", "transformers", "accelerate", "lightning", "peft")
_VARIABLES = ("REMAT_", "TORCH_", "TORCHINDUCTOR_", "PYTORCH_", "TRITON_", "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS")


def add_parser(commands: Commands[argparse.ArgumentParser]) -> argparse.ArgumentParser:
    parser = add_command(
        commands,
        "env",
        help="print versions, hardware and settings, for a bug report",
        description="Print what a bug report needs: versions, hardware, compilers, and the settings that matter.",
        examples=_EXAMPLES,
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of text")
    parser.set_defaults(run=run)
    return parser


def run(arguments: argparse.Namespace) -> int:
    found = without_names(environment())
    if arguments.json:
        print(json.dumps(found, indent=2))
        return 0
    width = max(map(len, found))
    for name, value in found.items():
        lines = [f"{k}={v}" for k, v in value.items()] if isinstance(value, dict) else value
        for line in lines if isinstance(lines, list) else [lines]:
            print(f"{name:<{width}}  {line}")
            name = ""
    return 0


def environment() -> dict[str, Any]:
    """Everything that a bug report needs, by name; a value is a string, a list or a mapping of strings."""
    variables = set_variables(_VARIABLES)  # before torch sets some itself
    variables.pop("TORCH_CPP_LOG_LEVEL", None)  # set by this command line
    return {
        "rematpass": __version__,
        "python": f"{platform.python_version()} ({platform.python_implementation()})",
        "os": platform.platform(),
        "cpu": f"{_cpu_name()}, {os.cpu_count()} cores",
        **_of_torch(),
        **{package: installed for package in _PACKAGES if (installed := _version(package))},
        "C++ compiler": _cpp_compiler(),
        "variables": variables or "none set",
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _of_torch() -> dict[str, Any]:
    """What torch reports; where it is missing or broken, the reason."""
    if not _version("torch"):
        return {"torch": "not installed"}
    try:
        import torch
    except Exception as error:
        return {"torch": f"{_version('torch')}, which does not load: {type(error).__name__}: {error}"}
    gpus = [f"{torch.cuda.get_device_name(i)}, {_capability(i)}" for i in range(torch.cuda.device_count())]
    return {
        "torch": torch.__version__,
        "CUDA": torch.version.cuda or "torch is built without it",
        "cuDNN": str(torch.backends.cudnn.version() or "none"),
        "gpu": gpus or "none",
        "torch settings": {
            "threads": str(torch.get_num_threads()),
            "float32_matmul_precision": torch.get_float32_matmul_precision(),
            "deterministic_algorithms": str(torch.are_deterministic_algorithms_enabled()),
            "cudnn.benchmark": str(torch.backends.cudnn.benchmark),
            **_of_inductor(),
        },
    }


def _capability(index: int) -> str:
    import torch

    major, minor = torch.cuda.get_device_capability(index)
    return f"compute capability {major}.{minor}"


def _of_inductor() -> dict[str, str]:
    """Settings of torch's compiler, and where it caches; where rematpass does not support this torch, the reason."""
    try:
        from rematpass.compiler import _torch
    except Exception as error:
        return {"compiler": f"not supported: {error}"}
    return {
        "activation_memory_budget": str(_torch.functorch_config.activation_memory_budget),
        "fx_graph_cache": str(_torch.inductor_config.fx_graph_cache),
        "force_disable_caches": str(_torch.inductor_config.force_disable_caches),
        "cache directory": str(_torch.cache_directory()),
    }


def _cpu_name() -> str:
    try:
        names = re.findall(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text("utf-8"), re.MULTILINE)
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()


def _cpp_compiler() -> str:
    """The first line of the compiler's version; Inductor uses it for the CPU."""
    wanted = set_variables(("CXX",)).get("CXX", "")
    path = next(filter(None, map(shutil.which, filter(None, (wanted, "g++", "clang++", "cl")))), None)
    if path is None:
        return "none found; torch.compile needs one on the CPU"
    done = subprocess.run([path, "--version"], capture_output=True, text=True, check=False)
    return (done.stdout or done.stderr).partition("\n")[0]


def without_names(found: Mapping[str, Any]) -> dict[str, Any]:
    """The same with the user's name and home directory removed from all paths."""
    home, user = str(Path.home()), Path.home().name

    def cleaned(text: str) -> str:
        text = text.replace(home, "~") if len(home) > 1 else text
        return re.sub(rf"(?<=[/\\_-]){re.escape(user)}(?=[/\\]|$)", "USER", text) if user else text

    def of(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: of(part) for name, part in value.items()}
        return [cleaned(part) for part in value] if isinstance(value, list) else cleaned(value)

    return {name: of(value) for name, value in found.items()}
