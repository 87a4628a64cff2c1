"""A model's prunable layers with their roles, stages and depths, and their inputs and outputs on images."""
