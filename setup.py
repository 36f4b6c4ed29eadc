"""What pyproject.toml cannot say without a warning: the compiled kernel."""

from setuptools import Extension, setup

KERNELS = "policies/qwen_vla/kernels"

setup(
    ext_modules=[
        Extension(
            "policies.qwen_vla._few_rows",
            [f"{KERNELS}/few_rows{part}.c" for part in ("", "_avx2", "_avx512")],
            depends=[f"{KERNELS}/few_rows{part}.h" for part in ("", "_loops")],
            extra_compile_args=["-O3", "-std=c11"],
            optional=True,  # without it, or without a compiler, slower products run
        )
    ]
)
