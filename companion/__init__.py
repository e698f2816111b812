"""The package behind the book "Generative Models, Verified"."""

__version__ = "0.1.0"
