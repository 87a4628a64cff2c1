"""Reconstruction: the kept weights are re-solved, layer by layer, to reproduce the outputs of the dense layers."""
