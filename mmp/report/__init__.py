"""From a folder of runs to what to ship: results, verdicts, tables, pictures and a page."""
