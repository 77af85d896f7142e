"""The C++ decoder, compiled for this machine at its first use and kept in the cache directory."""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

from framework.config import cache_dir
from framework.errors import ConfigError

SOURCES = ("decoder.cpp", "attention.h", "linear.h", "model.h", "team.h", "vectors.h")
FLAGS = ("-O3", "-march=native", "-std=c++20", "-fPIC", "-shared", "-pthread", "-fno-math-errno")
COMPILERS = ("g++", "c++", "clang++")
SECONDS = 300
MODES = ("on", "off", "portable")
LOG = logging.getLogger(__name__)


@cache
def library() -> ctypes.CDLL | None:
    """The compiled kernels; None where they can't be had, which is logged once: everything then runs on torch.

    The environment variable LECTERN_KERNELS chooses: "off" never uses them, "portable" compiles them without the
    machine's own instructions for 8-bit products.

    Raises:
        ConfigError: LECTERN_KERNELS has another value.
    """
    mode, compiler = os.environ.get("LECTERN_KERNELS") or "on", find_compiler()
    if mode not in MODES:
        raise ConfigError(
            f"LECTERN_KERNELS is {mode!r}.", hint=f"Use one of {', '.join(MODES)}.", field="LECTERN_KERNELS"
        )
    if mode == "off" or compiler is None:
        LOG.info("The engine runs without its C++ kernels: %s", "turned off" if compiler else "no C++ compiler")
        return None
    flags = (*FLAGS, "-DLECTERN_PORTABLE") if mode == "portable" else FLAGS
    try:
        return _loaded(_built(shlex.split(compiler), flags, cache_dir() / "kernels"))
    except (OSError, subprocess.SubprocessError) as error:
        said = getattr(error, "stderr", "") or str(error)
        LOG.warning("The engine runs without its C++ kernels, %s failed: %s", compiler, said[-2000:])
        return None


def find_compiler() -> str | None:
    """What compiles the kernels here: CXX, which may hold options too, or the first compiler that is found."""
    return os.environ.get("CXX") or next((path for name in COMPILERS if (path := shutil.which(name))), None)


def _built(compiler: list[str], flags: tuple[str, ...], folder: Path) -> Path:
    """The compiled file for these sources, flags, compiler and processor; compiled where it is missing or damaged.

    The second half of its name is the digest of what it holds.
    """
    here = Path(__file__).parent
    version = subprocess.run([*compiler, "--version"], capture_output=True, text=True, timeout=SECONDS, check=True)
    parts = [*((here / name).read_text(encoding="utf-8") for name in SOURCES), *flags, version.stdout, _processor()]
    stem = f"decoder-{_digest(chr(0).join(parts).encode())}"
    for target in folder.glob(f"{stem}-*.so"):
        if target.stem == f"{stem}-{_digest(target.read_bytes())}":
            return target
        target.unlink(missing_ok=True)  # cut off by a full disk or a power failure: loading it would end the process
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    with tempfile.TemporaryDirectory(dir=folder) as work:
        made = Path(work) / "decoder.so"
        command = [*compiler, *flags, str(here / SOURCES[0]), "-o", str(made)]
        subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=True)
        return made.replace(folder / f"{stem}-{_digest(made.read_bytes())}.so")


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:24]


def _loaded(path: Path) -> ctypes.CDLL:
    if hasattr(os, "getuid") and path.stat().st_uid not in (os.getuid(), 0):
        raise OSError(f"{path} belongs to another user, so it is not loaded.")
    loaded = ctypes.CDLL(str(path))
    loaded.lectern_open.restype = ctypes.c_void_p
    loaded.lectern_open.argtypes = [ctypes.c_int]
    loaded.lectern_close.restype = None
    loaded.lectern_close.argtypes = [ctypes.c_void_p]
    loaded.lectern_forward.restype = ctypes.c_int
    loaded.lectern_forward.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p]
    return loaded


def _processor() -> str:
    """What -march=native depends on: a home directory may be shared between machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.platform() + platform.processor()
    told = ("flags", "Features", "model name", "CPU part")
    return "\n".join(sorted({line for line in lines if line.startswith(told)}))
