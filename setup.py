"""What setup.cfg cannot say: the compiled steps of a frame. Without a C compiler Python does the same."""

from hashlib import sha256
from pathlib import Path

from setuptools import Extension, setup

folder = Path(__file__).parent / "audiosocket"
files = sorted(folder.glob("_*.[ch]"))
digest = sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
frames = Extension(
    "audiosocket._frames",
    [f"audiosocket/{file.name}" for file in files if file.suffix == ".c"],
    depends=[f"audiosocket/{file.name}" for file in files],
    define_macros=[("SOURCE", f'"{digest}"')],
    extra_compile_args=["-O3", "-ffp-contract=off"],  # numpy makes no one step of a * b + c
    optional=True,
)

setup(ext_modules=[frames])
