"""Forecasts what a number of GPUs would achieve, from FLOPs, bytes, messages and fitted shares.

`work` defines amounts; `dit_work` and `vae_work` count them for a rank's part of the model;
`layout` determines what is sent over which link; `machine` converts amounts to seconds; `forecast`
combines the stages of a chunk by the runtime's rules of overlap; `search` finds the best split. The
hardware is in `livetalk_kernels.gpus`, `figures` holds published times, and `fit` and `recorded`
determine the constants that neither gives.
"""
