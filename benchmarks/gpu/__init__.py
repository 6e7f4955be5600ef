"""What needs a GPU: the check of everything on one, and a model of the times."""
