"""The pruning library: layers, ranges, strategies, signals, masks and reconstruction for any ``nn.Module``.

It needs torch, numpy and safetensors. optuna (:mod:`search`) and matplotlib (:func:`plan_views.draw_plan`) are imported
where they are used. Hydra, OmegaConf, Lightning, W&B and timm are never imported.
"""
