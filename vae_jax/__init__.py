"""Variational autoencoders of images, sound and music in JAX/Flax. Start at `train.py`, `update.py` and `tasks/`."""
