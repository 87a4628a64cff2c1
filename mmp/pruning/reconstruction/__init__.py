"""Reconstruction: kept weights re-solved layer by layer against the dense layers' outputs."""
