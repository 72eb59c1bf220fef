"""Exploratory analysis of a KorQuAD dataset. `korquad_analysis` is the script."""
