"""Sliders over a trained network, and the picture they move."""
