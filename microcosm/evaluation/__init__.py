"""Measuring a weights folder on scenes and wordings that no training saw."""
