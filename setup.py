"""Maps the top-level folders benchmarks/, kernels/ and training/ into the package; the rest is in pyproject.toml."""

from setuptools import setup

setup(
    packages=[
        "edgepose",
        "edgepose.benchmarks",
        "edgepose.benchmarks.peers",
        "edgepose.engines",
        "edgepose.models",
        "edgepose.pipelines",
        "edgepose.sources",
        "edgepose.kernels",
        "edgepose.training",
        "edgepose.training.annotations",
        "edgepose.training.detection",
        "edgepose.training.models",
        "edgepose.training.synthetic",
    ],
    package_dir={
        "edgepose": "edgepose",
        "edgepose.benchmarks": "benchmarks",
        "edgepose.kernels": "kernels",
        "edgepose.training": "training",
    },
    package_data={
        "edgepose": ["py.typed", "view_page/*"],
        "edgepose.models": ["*.onnx", "*.md", "detectors/*.onnx"],
        "edgepose.benchmarks": ["models/*.npz", "results/schema.json"],
        "edgepose.kernels": ["*.cu", "*.cuh"],
        "edgepose.training.annotations": ["*/*.json", "*/README.md", "*/LICENSE", "*/*.svg"],
    },
)
