"""Names of TensorRT's Python API: which the product uses, which there are in which version.

The bindings of full TensorRT import without its libraries when stand-ins of the same names lie in LD_LIBRARY_PATH
(`stub_libraries`). tests/data/tensorrt_names.json holds what bindings of eight versions were found to have. To add one:

    pip download --no-deps tensorrt-cu12-bindings==10.3.0 && unzip -d bindings tensorrt*.whl
    python tests/tensorrt_names.py 10.3=bindings ... > tests/data/tensorrt_names.json
"""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path

# What a variable of this name, or an attribute with an underscore before it, holds in the files that use TensorRT.
BUILD = {
    "trt": "",
    "builder": "Builder",
    "network": "INetworkDefinition",
    "parser": "OnnxParser",
    "parser_error": "ParserError",
    "config": "IBuilderConfig",
    "optimization_profile": "IOptimizationProfile",
    "layer": "ILayer",
    "tensor": "ITensor",
}
RUN = {
    "trt": "",
    "runtime": "Runtime",
    "engine": "ICudaEngine",
    "context": "IExecutionContext",
    "config": "IRuntimeConfig",
    "inspector": "EngineInspector",
}
FILES = {
    "edgepose/build_trt.py": BUILD,
    "edgepose/tensorrt_api.py": {"trt": ""},
    "edgepose/engines/tensorrt.py": RUN,
}
CLASSES = (
    *("BuilderFlag", "ComputeCapability", "CudaGraphStrategy", "DynamicShapesKernelSpecializationStrategy"),
    *("EngineValidity", "ExecutionContextAllocationStrategy", "ILogger", "IProgressMonitor", "IRuntimeCache"),
    *("LayerInformationFormat", "LayerType", "MemoryPoolType", "NetworkDefinitionCreationFlag", "ProfilingVerbosity"),
    *("TensorIOMode", "DataType"),
    *filter(None, {**BUILD, **RUN}.values()),
    "IBuilderConfig",
)

STUB = """
#define F(name) void* name(void) { return 0; }
F(createInferBuilder_INTERNAL) F(createInferRefitter_INTERNAL) F(createInferRuntime_INTERNAL)
F(createNvOnnxParserRefitter_INTERNAL) F(createNvOnnxParser_INTERNAL) F(getBuilderPluginRegistry) F(getPluginRegistry)
int getNvOnnxParserVersion(void) { return 0; }
_Bool initLibNvInferPlugins(void* logger, const char* library) { return 0; }
"""


def used_names(path: Path, variables: dict[str, str]) -> set[str]:
    """``Class.member`` for what is read of or called on a variable that holds a TensorRT object; see FILES."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ClassDef):  # a class of TensorRT's that is derived from: the methods overridden
            bases = [
                chain[-1] for chain in map(_chain, node.bases) if len(chain) == 2 and chain[0] in {"trt", "module"}
            ]
            methods = [item.name for item in node.body if isinstance(item, ast.FunctionDef) and item.name[0] != "_"]
            names |= {f"{base}.{method}" for base in bases for method in methods}
        chain = _chain(node)
        if len(chain) < 2:
            continue
        if chain[-2] == "module" or ("module" in chain[:-2]):  # api.module.X, or module.X.Y
            chain = ["trt", *chain[chain.index("module") + 1 :]]
        if chain[0] == "self":
            chain = chain[1:]
        holder = chain[0].lstrip("_")
        if holder not in variables or len(chain) < 2 or chain[1].startswith("__"):
            continue
        if variables[holder]:
            names.add(f"{variables[holder]}.{chain[1]}")
        elif chain[1][0].isupper():
            names.add(".".join(chain[1:3]))
    # What `getattr(trt.X, "Y")` and a derived class's methods name.
    for match in re.finditer(r'getattr\((?:\w+\.)*module\.(\w+), "(\w+)"', path.read_text()):
        names.add(f"{match[1]}.{match[2]}")
    return {name for name in names if not name.endswith(".__init__")}


def _chain(node: ast.AST) -> list[str]:
    """``["a", "b", "c"]`` for the expression a.b.c; empty for any other."""
    names: list[str] = []
    while isinstance(node, ast.Attribute):
        names.append(node.attr)
        node = node.value
    return [*names, node.id][::-1] if isinstance(node, ast.Name) else []


def stub_libraries(bindings: Path, folder: Path) -> Path:
    """Compile stand-ins for the libraries that the bindings are linked against; returns their folder."""
    folder.mkdir(parents=True, exist_ok=True)
    source = folder / "stub.c"
    source.write_text(STUB)
    (extension,) = bindings.glob("tensorrt*.so")
    names = re.findall(rb"lib(?:nvinfer|nvonnxparser|nvinfer_plugin|tensorrt\w*)\.so\.\d+", extension.read_bytes())
    for name in {found.decode() for found in names}:
        command = ["gcc", "-shared", "-fPIC", f"-Wl,-soname,{name}", "-o", str(folder / name), str(source)]
        subprocess.run(command, check=True, capture_output=True)
    return folder


def run_with_stubs(stubs: Path, code: str, *paths: Path) -> str:
    """Standard output of a Python program that finds the stand-ins, with ``paths`` before its own on sys.path."""
    library_path = os.pathsep.join(filter(None, [str(stubs), os.environ.get("LD_LIBRARY_PATH")]))
    environment = {**os.environ, "LD_LIBRARY_PATH": library_path, "PYTHONPATH": os.pathsep.join(map(str, paths))}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def list_names(module: str) -> str:
    """A program that prints the names of our classes in a module, as JSON."""
    return f"""
import json, {module} as trt
classes = [name for name in {sorted(set(CLASSES))} if hasattr(trt, name)]
members = [f"{{name}}.{{member}}" for name in classes for member in dir(getattr(trt, name)) if member[0] != "_"]
print(json.dumps(classes + members))
"""


def main() -> None:
    versions: dict[str, list[str]] = {}
    labels = []
    for argument in sys.argv[1:]:
        label, _, place = argument.partition("=")
        labels.append(label)
        (extension,) = Path(place).glob("tensorrt*_bindings/tensorrt*.so")
        stubs = stub_libraries(extension.parent, Path(place) / "stubs")
        for name in json.loads(run_with_stubs(stubs, list_names(extension.parent.name), Path(place))):
            versions.setdefault(name, []).append(label)
    names = {name: "all" if found == labels else " ".join(found) for name, found in sorted(versions.items())}
    print(json.dumps({"versions": labels, "names": names}, indent=0))


if __name__ == "__main__":
    main()
