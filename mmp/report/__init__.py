"""Reports: from a folder of runs to the model to ship, as findings, tables, pictures and a page."""
