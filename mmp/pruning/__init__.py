"""The library: layers, ranges, strategies, signals, masks and reconstruction of any ``nn.Module``.

Nothing in this package imports Hydra, OmegaConf, Lightning, W&B or timm.
"""
