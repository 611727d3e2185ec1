# Run inside an environment that has `pip install -e '.[dev]'`.
PYTHON ?= python
TYPED := build/typed
BENCH := $(PYTHON) -m edgepose.cli bench
RESULTS := --output benchmarks/results

.PHONY: check format test test-gpu sanitize-gpu bench bench-gpu wheel clean

check:  ## lint, formatting and types: what CI runs before the tests
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	# mypy cannot follow an editable install of mapped folders, so it gets the package as a wheel would lay it out
	rm -rf $(TYPED) && $(PYTHON) setup.py -q build_py --build-lib $(TYPED)
	cd $(TYPED) && $(PYTHON) -m mypy --config-file ../../pyproject.toml -p edgepose

format:
	$(PYTHON) -m ruff check --fix .
	$(PYTHON) -m ruff format .

test:
	$(PYTHON) -m pytest -n auto

test-gpu:  ## the tests that need an NVIDIA GPU and CuPy; they skip, and say so, elsewhere
	$(PYTHON) -m pytest tests/gpu

sanitize-gpu:  ## the kernels' GPU tests under compute-sanitizer, for memory errors and for races in shared memory
	compute-sanitizer --tool memcheck --error-exitcode 9 $(PYTHON) -m pytest -q tests/gpu/test_kernels_gpu.py
	compute-sanitizer --tool racecheck --error-exitcode 9 $(PYTHON) -m pytest -q tests/gpu/test_kernels_gpu.py

bench:  ## writes benchmarks/results/{latency,kernels,...}--DEVICE.json; a suite that fails does not end the others
	@status=0; \
	for suite in latency throughput kernels scaling startup settings accuracy streams tracking data-loading; do \
	    $(BENCH) $$suite $(RESULTS) || status=1; \
	done; \
	exit $$status

# Each suite saves after each of its parts, and has its share of eight minutes: a failure or the time's end costs no more
# than what was not yet measured.
bench-gpu:  ## needs an NVIDIA GPU, CuPy and PyTorch; writes benchmarks/results/{kernels,latency,throughput}--GPU.json
	@status=0; \
	timeout -s INT 100 $(BENCH) kernels --device cuda $(RESULTS) || status=1; \
	timeout -s INT 280 $(BENCH) latency --device cuda --boxes 1 --boxes 8 $(RESULTS) || status=1; \
	timeout -s INT 90 $(BENCH) throughput --device cuda $(RESULTS) || status=1; \
	exit $$status

wheel:
	$(PYTHON) -m build --wheel

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
