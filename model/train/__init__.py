"""Training: the teacher's flow matching, and the distillation that corrects its own drift.

Source: SoulX-FlashTalk (arXiv 2512.23379). Formulas are in the file whose job they are, as pure
functions of tensors; shape suffixes: B batch, C channels, T latent frames, H rows, W columns.
"""
