"""What penalties and regularizers need of a critic: its calls, samples, scores and gradients."""
