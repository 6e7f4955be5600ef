"""What GPUs should take, by counting: a model, no measurement. `python -m benchmarks.gpu.model`."""
