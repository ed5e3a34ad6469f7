"""Plans and the weights that ship with them: one folder a model."""
