"""What a number of GPUs would give: a forecast from FLOPs, bytes, messages and a few fitted shares.

`work` is amounts; `dit_work` and `vae_work` count them on a rank's part of the model; `layout` says
what is sent over which link; `machine` turns amounts into seconds; `forecast` puts the stages of a
chunk together by the runtime's rules of overlap; `search` finds the best split. The hardware is in
`livetalk_kernels.gpus`, `figures` holds what published systems take, and `fit` and `recorded` find
the constants that neither says.
"""
