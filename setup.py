"""What setup.cfg cannot say: the compiled steps of a frame. Without a C compiler their Python twins do the same."""

from setuptools import Extension, setup

setup(ext_modules=[Extension("audiosocket._frames", ["audiosocket/_frames.c"], optional=True)])
