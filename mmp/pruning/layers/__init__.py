"""A model's prunable layers: their roles, stages, depths, inputs and outputs."""
