"""The forward of a fused model: weights normalized ahead, and how layers come by them."""
