"""Shards to multi-crop batches, through NVIDIA DALI or the plain reference."""
