"""Reconstruction: the kept weights are re-solved, layer by layer, to return what the dense layers returned."""
