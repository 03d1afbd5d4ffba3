"""Builds the compiled kernel and checksums, plain C libraries, for a wheel or for sources that are installed as a link.

Without a working compiler there is a pure wheel, and ckpttool computes with numpy. The environment variable
CKPTTOOL_KERNEL says otherwise: `yes` fails where the kernel cannot be built, `no` does not try.

    python hatch_build.py      builds it in place
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

try:
    from hatchling.builders.hooks.plugin.interface import BuildHookInterface
except ImportError:  # in-place, by hand
    BuildHookInterface = object  # type: ignore[assignment,misc]

LIBRARIES = {
    "ckpttool/engine/kernels/kernel.c": "ckpttool/engine/kernels/_kernel.so",
    "ckpttool/checksums/crc.c": "ckpttool/checksums/_crc.so",
}
"""Each source and what is made of it."""

FLAGS = (
    "-O3",
    "-std=gnu11",
    "-fPIC",
    "-shared",
    "-fvisibility=hidden",
    # The bits of the results depend on these: nothing contracted, nothing reassociated. Last, so that they hold
    # whatever CFLAGS says.
    "-fno-fast-math",
    "-ffp-contract=off",
    # These make loops faster and change no result.
    "-fno-math-errno",
    "-fno-trapping-math",
)


class KernelError(Exception):
    """The kernel could not be built."""


def wish() -> str:
    """What CKPTTOOL_KERNEL asks for: auto, yes or no."""
    value = os.environ.get("CKPTTOOL_KERNEL") or "auto"
    if value not in {"auto", "yes", "no"}:
        raise SystemExit(f"CKPTTOOL_KERNEL={value}: is none of auto, yes, no")
    return value


def compiler() -> list[str]:
    """The C compiler: $CC, the first of the usual names that is there, or what Python was built with."""
    if os.environ.get("CC"):
        return shlex.split(os.environ["CC"])
    for name in ("cc", "gcc", "clang"):
        if shutil.which(name):
            return [name]
    return shlex.split(sysconfig.get_config_var("CC") or "cc")


def architectures() -> list[str]:
    """Flags that choose processors on macOS, where one library can be for two."""
    if os.environ.get("ARCHFLAGS"):
        return shlex.split(os.environ["ARCHFLAGS"])
    if sysconfig.get_platform().endswith("universal2"):
        return ["-arch", "arm64", "-arch", "x86_64"]
    return []


def platform_tag() -> str:
    """The platform as names of wheels have it."""
    return sysconfig.get_platform().replace("-", "_").replace(".", "_")


def build(source: Path, target: Path) -> None:
    """Compile the kernel.

    Raises:
        KernelError: It cannot be compiled here.
    """
    if sys.platform == "win32":
        raise KernelError("not built on Windows")
    flags = [*shlex.split(os.environ.get("CFLAGS", "")), *architectures(), *FLAGS]
    linking = shlex.split(os.environ.get("LDFLAGS", ""))
    command = [*compiler(), *flags, str(source), "-o", str(target), *linking]
    try:
        done = subprocess.run(command, check=False, capture_output=True, text=True)  # noqa: S603
    except OSError as error:
        raise KernelError(f"{command[0]}: {error.strerror}") from error
    if done.returncode or not target.exists():
        raise KernelError(f"{shlex.join(command)}\n{done.stderr.strip()}")


def build_in_place(root: Path) -> list[Path]:
    """Compile every library next to its sources; a process that has the old one loaded keeps it.

    Raises:
        KernelError: One cannot be compiled, or its directory cannot be written to.
    """
    for source, library in LIBRARIES.items():
        target = root / library
        try:
            with tempfile.TemporaryDirectory(dir=target.parent) as temporary:
                made = Path(temporary) / target.name
                build(root / source, made)
                made.replace(target)
        except OSError as error:
            raise KernelError(f"{target.parent}: {error.strerror}") from error
    return [root / library for library in LIBRARIES.values()]


class CustomBuildHook(BuildHookInterface):  # type: ignore[type-arg]
    """Called by hatchling for every wheel, real or a link to the sources."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Build the kernel, and say what the wheel is for."""
        if self.target_name != "wheel" or wish() == "no":
            return
        root = Path(self.root)
        try:
            if version == "editable":
                build_in_place(root)
                return
            # Not in place: sources may be read-only, and what is built from them must not change them.
            self._temporary = tempfile.TemporaryDirectory()
            made = {library: Path(self._temporary.name) / Path(library).name for library in LIBRARIES.values()}
            for source, library in LIBRARIES.items():
                build(root / source, made[library])
        except KernelError as error:
            if wish() == "yes":
                raise SystemExit(f"the kernel cannot be built:\n{error}") from error
            self.app.display_warning(f"without the compiled kernel, numpy will compute: {error}")
            return
        build_data["force_include"].update({str(path): library for library, path in made.items()})
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{platform_tag()}"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:  # noqa: ARG002
        """Remove what was built for the wheel."""
        temporary = getattr(self, "_temporary", None)
        if temporary is not None:
            temporary.cleanup()


def main() -> None:
    """Build in place."""
    try:
        print(*build_in_place(Path(__file__).resolve().parent), sep="\n")
    except KernelError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
