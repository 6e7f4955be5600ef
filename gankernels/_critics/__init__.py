"""The critic as penalties and regularizers see it: its calls, samples, scores and gradients."""
