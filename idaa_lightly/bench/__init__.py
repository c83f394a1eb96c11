"""Benchmarks: train, evaluate and compare runs that a configuration describes."""
