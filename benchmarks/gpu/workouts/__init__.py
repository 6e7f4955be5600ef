"""A workout for each operator: awkward tensors, in the files named as the operators are."""
