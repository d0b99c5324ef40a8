"""The kernel of the `fused` renderer, which setup.cfg cannot name. Without a compiler all but the kernel installs."""

from setuptools import Extension, setup

# Not -ffast-math: before GCC 13, linking with it makes the whole process flush small numbers to zero. The kernel
# guards itself against NaN and infinity before it computes.
ARITHMETIC = ["-fno-math-errno", "-fno-trapping-math", "-fno-signed-zeros", "-ffinite-math-only", "-ffp-contract=fast"]

setup(
    ext_modules=[
        Extension(
            "dino_ssl.data._crops",
            sources=["dino_ssl/data/crops.cpp"],
            depends=["dino_ssl/data/crops_kernel.h"],
            extra_compile_args=["-O3", "-std=c++14", "-fno-exceptions", "-fno-rtti", "-Wno-psabi", *ARITHMETIC],
            optional=True,
            py_limited_api=True,  # it is loaded with ctypes and uses nothing of Python's
        )
    ],
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
