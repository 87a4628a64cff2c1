"""Whole channels: which of them can only go together, and how a network becomes smaller without them."""
