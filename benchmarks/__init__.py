"""Benchmarks: what `edgepose bench` runs. Every figure of the README and of docs/benchmarks.md comes from here.

records.py         what a result file holds
timing.py          how something is timed: interleaved, with a spread
scenes.py          frames with garments on them, and the models (bench_models.py) that look at them
ways.py, peers/    the ways of doing the same work: ours, and those of others
latency.py, ...    the suites, one file each
"""
