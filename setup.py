"""Installs kdjax. This file has lower bounds; constraints.txt has the exact versions that kdjax is tested with."""

import pathlib
import re

from setuptools import find_packages, setup

ROOT = pathlib.Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (ROOT / "kdjax" / "__init__.py").read_text()).group(1)

setup(
    name="kdjax",
    version=VERSION,
    description="Knowledge distillation in JAX, where the teacher is trained to teach",
    long_description=(ROOT / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    packages=find_packages(include=["kdjax", "kdjax.*"]),
    package_data={"kdjax.reporting": ["templates/*"]},
    python_requires=">=3.11",
    install_requires=[
        "absl-py>=2.1",
        "flatbuffers>=24.3",  # jax.export imports it without requiring it
        "flax>=0.12",
        "grain>=0.2.14",
        "importlib_resources>=6.0",  # tensorflow-datasets imports it without requiring it
        "jax>=0.10",
        "jinja2>=3.1",
        "matplotlib>=3.9",
        "ml_collections>=1.0",
        "ml_dtypes>=0.5",
        "numpy>=2.0",
        "optax>=0.2.5",
        "orbax-checkpoint>=0.12",
        "pillow>=10.0",  # tensorflow-datasets imports it without requiring it
        "pooch>=1.8",
        "requests>=2.31",
        "safetensors>=0.5",
        "scikit-learn>=1.5",
        "scipy>=1.12",
        "tensorflow-datasets>=4.9.7",
        "tqdm>=4.66",
    ],
    extras_require={
        "test": [
            "chex>=0.1.90",
            "pytest>=8.0",
            "pytest-xdist>=3.6",
            "nbclient>=0.10",
            "nbformat>=5.10",
            "ipykernel>=6.29",
            "tensorboardX>=2.6",
            "hypothesis>=6.100",
            "submitit>=1.5",
            # Pinned, since other releases format and check otherwise. [nodejs] brings Node as a wheel; without it
            # pyright downloads Node when it first runs.
            "ruff==0.17.6",
            "pyright[nodejs]==1.1.414",
        ],
        "slurm": ["submitit>=1.5"],  # for run_study --executor
        "tensorboard": ["tensorboardX>=2.6"],
        "wandb": ["wandb>=0.19"],
        "torch": ["torch>=2.2"],  # for the tests that compare kdjax with torch
        "tf": ["tensorflow-cpu>=2.16"],
    },
)
