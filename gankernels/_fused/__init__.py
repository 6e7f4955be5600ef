"""What models have in common whose weights are computed ahead, in one call a forward."""
