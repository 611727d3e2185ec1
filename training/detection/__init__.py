"""The garment detector: a small YOLOX-like network, the scenes that it learns from, its training and its figures."""
