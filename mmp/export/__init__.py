"""From a run to a file for a device, run in its own engine and measured."""
