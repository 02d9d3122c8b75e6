"""The report: the paper's claims, how each is measured, and a verdict by one set of statistics."""
