"""From a pruned network to a file that is fast: compensation, widths for a budget, export, latency."""
