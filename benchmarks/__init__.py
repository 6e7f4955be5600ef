"""Benchmarks of gankernels: how fast, against what, and how close to what memory allows."""
