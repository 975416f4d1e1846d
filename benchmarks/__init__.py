"""Throughput scenarios, the GPU smoke run and the guard."""
