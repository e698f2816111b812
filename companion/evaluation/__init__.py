"""Measures of models and of their codes, each usable without the rest."""

from companion.evaluation.disentanglement import mutual_information_gap

__all__ = ["mutual_information_gap"]
