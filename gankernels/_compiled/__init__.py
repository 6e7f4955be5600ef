"""The parts of :func:`gankernels.compile_step`."""
