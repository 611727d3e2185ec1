"""Kernels of edgepose: CUDA sources, their launchers, and :mod:`edgepose.kernels.reference`, a NumPy twin of each.

Nothing is imported or compiled here, and nothing in this package imports the rest of edgepose.
"""
