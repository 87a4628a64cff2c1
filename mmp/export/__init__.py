"""Exports: from a run to a file for a device, executed in its engine and measured there."""
