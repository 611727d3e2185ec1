"""Training: models, recipes, data, the trainer, export, and the renderer of garments (which needs no PyTorch)."""
